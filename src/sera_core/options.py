"""Checks that option values make sense, with one wording for all components. For plugins to use, too."""

from __future__ import annotations

import math

from sera_core.errors import ConfigError


def require_number(
    component: str, option: str, value: object, *, low: float, high: float = math.inf, expected: str
) -> None:
    """Check that an option is a finite number in [low, high].

    Args:
        component: role and name, such as ``objective 'dpo'``.
        option: the option's name.
        value: what came.
        low: smallest value allowed.
        high: largest value allowed.
        expected: the range in words, for the message.

    Raises:
        ConfigError: not a number, not finite, or out of range.
    """
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and low <= number <= high):
        raise ConfigError(f"{component}: option {option} must be {expected}; got {value!r}. Change {option}.")


def require_positive(component: str, option: str, value: object, *, typical: str) -> None:
    """Check that an option is a finite number above 0; `typical` values go into the message.

    Raises:
        ConfigError: not a number, not finite, or not above 0.
    """
    smallest = math.ulp(0.0)
    require_number(component, option, value, low=smallest, expected=f"a finite number > 0 (typically {typical})")


def require_choice(component: str, option: str, value: object, choices: tuple[str, ...]) -> None:
    """Check that an option is one of a few words.

    Raises:
        ConfigError: it is not.
    """
    if value not in choices:
        allowed = " or ".join(repr(choice) for choice in choices)
        raise ConfigError(f"{component}: option {option} must be {allowed}; got {value!r}. Change {option}.")


def require_flag(component: str, option: str, value: object) -> None:
    """Check that an option is True or False.

    Raises:
        ConfigError: it is neither.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{component}: option {option} must be true or false; got {value!r}. Change {option}.")


def require_whole(component: str, option: str, value: object, *, low: int, typical: str = "") -> None:
    """Check that an option is a whole number of at least `low`; `typical` values go into the message.

    Raises:
        ConfigError: not a whole number, or too small.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        usual = f" (typically {typical})" if typical else ""
        raise ConfigError(
            f"{component}: option {option} must be a whole number >= {low}{usual}; got {value!r}. Change {option}."
        )


def refuse_unread(component: str, option: str, value: object, default: object, reader: str) -> None:
    """Refuse a value other than the default for an option that only `reader` reads.

    Raises:
        ConfigError: the option is set and would be ignored.
    """
    if value != default:
        raise ConfigError(
            f"{component}: option {option} = {value!r} is only read with {reader} and would be ignored. "
            f"Remove {option}, or set {reader}."
        )


def refuse_both(component: str, first: str, one: object, second: str, other: object) -> None:
    """Refuse two options that both set the size of one ambiguity set.

    Raises:
        ConfigError: neither is None.
    """
    if one is not None and other is not None:
        raise ConfigError(
            f"{component}: options {first} and {second} exclude each other; got {first}={one!r} and "
            f"{second}={other!r}. Remove one, or set it to null."
        )

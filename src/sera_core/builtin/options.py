"""Checks that option values make sense, with one wording for all built-in components."""

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

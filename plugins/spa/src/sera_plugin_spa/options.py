"""Checks that option values make sense, with one wording for all components of this plugin."""

from __future__ import annotations

import math

from sera_core.errors import ConfigError

BELOW_ONE = 1.0 - 2.0**-53


def require_number(
    component: str, option: str, value: object, *, low: float, high: float = math.inf, expected: str
) -> None:
    """Check that an option is a finite number in [low, high]; `expected` says so in words.

    Raises:
        ConfigError: not a number, not finite, or out of range.
    """
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and low <= number <= high):
        raise ConfigError(f"{component}: option {option} must be {expected}; got {value!r}. Change {option}.")


def require_whole(component: str, option: str, value: object, *, low: int, typical: str) -> None:
    """Check that an option is a whole number of at least `low`; `typical` values go into the message.

    Raises:
        ConfigError: not a whole number, or too small.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(
            f"{component}: option {option} must be a whole number >= {low} (typically {typical}); got {value!r}. "
            f"Change {option}."
        )


def require_choice(component: str, option: str, value: object, choices: tuple[str, ...]) -> None:
    """Check that an option is one of a few words.

    Raises:
        ConfigError: it is not.
    """
    if value not in choices:
        allowed = " or ".join(repr(choice) for choice in choices)
        raise ConfigError(f"{component}: option {option} must be {allowed}; got {value!r}. Change {option}.")


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


def require_refinement(component: str, *, alpha: object, share: object, extrapolation: object, warmup: object) -> None:
    """Check the options that both smoothers of this plugin have.

    Raises:
        ConfigError: one of them out of range.
    """
    require_number(component, "alpha", alpha, low=0, high=1, expected="a number from 0 (no refinement) to 1")
    expected = "a share of the pairs, 0 <= share < 1 (0.1 is the paper's K = 10 %)"
    require_number(component, "share", share, low=0, high=BELOW_ONE, expected=expected)
    expected = "a finite number >= 0 (0: the policy's own confidence)"
    require_number(component, "extrapolation", extrapolation, low=0, expected=expected)
    expected = "a share of the training steps, 0 <= warmup <= 1 (1: never acts)"
    require_number(component, "warmup", warmup, low=0, high=1, expected=expected)

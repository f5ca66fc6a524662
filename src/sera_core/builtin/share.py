"""How many pairs a fraction or a count means."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

from sera_core.errors import ConfigError
from sera_core.options import require_number


def require_share(component: str, fraction: float | None, count: int | None) -> None:
    """Check that exactly one of `fraction` in [0, 1] and `count` >= 0 is given.

    Raises:
        ConfigError: both, neither, or a value out of range.
    """
    if (fraction is None) == (count is None):
        raise ConfigError(
            f"{component} needs exactly one of fraction and count; got fraction={fraction!r}, count={count!r}. "
            "Give, for example, fraction: 0.7."
        )
    if fraction is not None:
        require_number(component, "fraction", fraction, low=0, high=1, expected="a number from 0 to 1")
    elif isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ConfigError(f"{component}: option count must be an integer >= 0; got {count!r}. Change count.")


def resolve_share(fraction: float | None, count: int | None, pool: int, available: int) -> int:
    """How many pairs to keep: `count`, or `fraction` of `pool` rounded half up, at most `available`.

    The product is exact in the decimal digits of `fraction`: 0.29 of 50 is 14.5 and rounds to 15, although the
    nearest binary number gives 14.499.
    """
    if fraction is None:
        return min(count or 0, available)
    exact = Decimal(str(fraction)) * pool
    return min(int(exact.to_integral_value(rounding=ROUND_HALF_UP)), available)

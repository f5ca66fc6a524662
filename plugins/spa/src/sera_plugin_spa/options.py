"""The options that both smoothers of this plugin have."""

from __future__ import annotations

from sera_core.options import require_number

BELOW_ONE = 1.0 - 2.0**-53


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

"""Radii that change while an iteration trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sera_core.options import require_number


@dataclass(frozen=True)
class Schedule:
    """A radius that goes linearly from `start` to `end` over training progress, then stays.

    Options: `start` and `end`, finite and >= 0. `until` in (0, 1], the share of the iteration's optimiser steps after
    which `end` is reached.

    Raises:
        ConfigError: a value out of range.
    """

    # A mistyped key must not fall back to a default without a word.
    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    start: float
    end: float
    until: float = 1.0

    def __post_init__(self) -> None:
        for option in ("start", "end"):
            require_number(
                "radius schedule", option, getattr(self, option), low=0, expected="a finite radius >= 0 (0: no change)"
            )
        require_number(
            "radius schedule",
            "until",
            self.until,
            low=math.ulp(0.0),
            high=1,
            expected="a share of the training steps, 0 < until <= 1",
        )

    def at(self, progress: float) -> float:
        """The radius when the share `progress`, in [0, 1], of the steps is done; exact at both ends."""
        share = min(progress / self.until, 1.0)
        return (1 - share) * self.start + share * self.end


def require_radius(component: str, value: object) -> None:
    """Check that `radius` is a finite number >= 0 or a `Schedule`.

    Raises:
        ConfigError: it is neither.
    """
    if not isinstance(value, Schedule):
        expected = "a finite number >= 0 (0: equal weights), or a schedule such as {start: 0, end: 0.1}"
        require_number(component, "radius", value, low=0, expected=expected)


def radius_at(radius: float | Schedule, progress: float) -> float:
    """The radius in force at a point of training, `progress` in [0, 1]."""
    return radius.at(progress) if isinstance(radius, Schedule) else float(radius)

"""What the tables of world results share: win rates compared at equal KL, and how an estimate is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sera_core.ablation_table import Estimate, metric
from sera_core.ablation_table import shown as shown_estimate

Point = tuple[float, float]
"""Win rate against the initial policy, and KL to it in nats."""


def win_and_kl(report: Mapping[str, Any]) -> Point:
    """The point of one run."""
    win, kl = metric(report, "win_rate_vs_initial"), metric(report, "kl_to_initial")
    assert win is not None
    assert kl is not None
    return win, kl


def gaps_over_line(points: Sequence[Point], line: Sequence[Point]) -> list[float]:
    """Differences of win rates to the line through (sqrt KL, win rate) of `line`; points beyond its ends left out."""
    x, y = zip(*sorted((max(kl, 0.0) ** 0.5, win) for win, kl in line), strict=True)
    found = [(max(kl, 0.0) ** 0.5, win) for win, kl in points]
    return [win - float(np.interp(at, x, y)) for at, win in found if x[0] <= at <= x[-1]]


def shown(value: Estimate | None, digits: int = 3, sign: str = "") -> str:
    """``mean [low, high]``, a dash where there is no estimate."""
    return "-" if value is None else shown_estimate(value, digits, sign)

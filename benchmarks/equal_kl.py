"""What the tables of world results share: win rates compared at equal KL, and how an estimate is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sera_core.ablation_table import Estimate
from sera_core.ablation_table import shown as shown_estimate
from sera_core.statistics.frontier import equal_kl_gap, line_of
from sera_core.statistics.outcomes import reported

Point = tuple[float, float]
"""Win rate against the initial policy, and KL to it in nats."""


def win_and_kl(report: Mapping[str, Any]) -> Point:
    """The point of one run."""
    win, kl = reported(report, "win_rate_vs_initial"), reported(report, "kl_to_initial")
    assert win is not None
    assert kl is not None
    return win, kl


def gaps_over_line(points: Sequence[Point], line: Sequence[Point]) -> list[float]:
    """Differences of win rates to the line through (sqrt KL, win rate) of `line`; points beyond its ends left out."""
    theirs = line_of((kl, win) for win, kl in line)
    gaps = [equal_kl_gap(line_of([(kl, win)]), theirs) for win, kl in points]
    return [gap[0] for gap in gaps if gap is not None]


def shown(value: Estimate | None, digits: int = 3, sign: str = "") -> str:
    """``mean [low, high]``, a dash where there is no estimate."""
    return "-" if value is None else shown_estimate(value, digits, sign)

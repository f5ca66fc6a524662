"""Win rates: points per prompt, ties one half, abstentions counted and left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from sera_core.evaluate.intervals import group_means, score_interval
from sera_core.protocols import Verdict
from sera_core.records import Floats

_POINTS: Mapping[Verdict, float] = {"win": 1.0, "tie": 0.5, "loss": 0.0}


def points_of(verdicts: Sequence[Verdict]) -> Floats:
    """Points of each verdict, float64 [n]: 1, 0.5 or 0; nan for an abstention."""
    return np.array([_POINTS.get(verdict, np.nan) for verdict in verdicts], dtype=np.float64)


def win_rate(
    verdicts: Sequence[Verdict], level: float, groups: Sequence[int] | None = None
) -> Mapping[str, float] | None:
    """Mean, interval and counts; None when every comparison abstained.

    Args:
        verdicts: one per comparison.
        level: coverage of the interval, in (0, 1).
        groups: the prompt number of each comparison; None where each has a prompt of its own.

    Returns:
        `mean` of the prompts' mean points with `low` and `high` (see `score_interval`: points within a prompt vary
        less than wins and losses, so the interval covers at least `level`); `n` prompts with a decided comparison;
        `ties` and `abstained` comparisons.
    """
    numbers = range(len(verdicts)) if groups is None else groups
    decided = [(_POINTS[v], number) for v, number in zip(verdicts, numbers, strict=True) if v != "abstain"]
    if not decided:
        return None
    points: Floats = group_means(np.array([each for each, _ in decided]), [number for _, number in decided])
    low, high = score_interval(float(points.sum()), len(points), level)
    counts = Counter(verdicts)
    return {
        "mean": float(points.mean()),
        "low": low,
        "high": high,
        "n": len(points),
        "ties": counts["tie"],
        "abstained": counts["abstain"],
    }

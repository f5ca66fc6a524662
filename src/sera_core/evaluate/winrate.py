"""Win rates: one verdict per prompt, ties one half, abstentions counted and left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from sera_core.evaluate.intervals import score_interval
from sera_core.protocols import Verdict


def win_rate(verdicts: Sequence[Verdict], level: float) -> Mapping[str, float] | None:
    """Mean, interval and counts; None when every comparison abstained."""
    counts = Counter(verdicts)
    n = len(verdicts) - counts["abstain"]
    if n == 0:
        return None
    points = counts["win"] + 0.5 * counts["tie"]
    low, high = score_interval(points, n, level)
    return {
        "mean": points / n,
        "low": low,
        "high": high,
        "n": n,
        "ties": counts["tie"],
        "abstained": counts["abstain"],
    }

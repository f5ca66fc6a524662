"""How margins of held-out pairs agree with the scores that annotators gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import kendalltau, spearmanr

from sera_core.evaluate.intervals import correlation
from sera_core.records import Floats, Pair


def score_gaps(pairs: Sequence[Pair]) -> Floats:
    """Annotated score of chosen minus that of rejected, float64 [n]; nan where a pair lacks either."""
    known = [(pair.chosen.score, pair.rejected.score) for pair in pairs]
    gaps = [np.nan if first is None or second is None else first - second for first, second in known]
    return np.array(gaps, dtype=np.float64)


def score_correlation(values: Floats, gaps: Floats) -> Mapping[str, float | None] | None:
    """Pearson, Spearman and Kendall (tau-b) correlation of pair values with score gaps, each in [-1, 1].

    `values` and `gaps` are float64 [n]; pairs whose gap is nan are left out, and `n` counts the others. Each figure is
    None with fewer than three pairs or where one side does not vary; the whole is None without a scored pair.
    """
    scored = np.isfinite(gaps)
    if not scored.any():
        return None
    values, gaps = values[scored], gaps[scored]
    pearson = correlation(values, gaps)
    return {
        "pearson": pearson,
        "spearman": None if pearson is None else float(spearmanr(values, gaps).statistic),
        "kendall": None if pearson is None else float(kendalltau(values, gaps).statistic),
        "n": len(values),
    }

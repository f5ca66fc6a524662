"""Intervals for means: every number a report prints carries one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import norm, t

from sera_core.records import Floats


def score_interval(points: float, n: int, level: float) -> tuple[float, float]:
    """Wilson's interval for a mean of n values in [0, 1] that sum to `points`.

    Ties worth one half have less variance than wins and losses, so the interval covers at least `level`.
    Source: Wilson 1927.
    """
    z = float(norm.ppf(0.5 + level / 2))
    mean, spread = points / n, z * z / n
    centre = (mean + spread / 2) / (1 + spread)
    half = z / (1 + spread) * float(np.sqrt(mean * (1 - mean) / n + spread / (4 * n)))
    return max(0.0, centre - half), min(1.0, centre + half)


def group_means(values: Floats, groups: Sequence[int]) -> Floats:
    """Mean of each group's values, float64 [g], groups in the order of their numbers.

    `groups` names the group of each value. Samples of one prompt share its difficulty and are no independent draws;
    their means are.
    """
    _, members = np.unique(np.asarray(groups, dtype=np.int64), return_inverse=True)
    means: Floats = np.bincount(members, weights=values) / np.bincount(members)
    return means


def mean_interval(values: Floats, level: float, groups: Sequence[int] | None = None) -> Mapping[str, float]:
    """Mean of n >= 1 values and its Student-t interval; with one value the interval is the value itself.

    With `groups` (see `group_means`) the values are the groups' means, and n counts groups.
    """
    values = values if groups is None else group_means(values, groups)
    n, mean = len(values), float(np.mean(values))
    error = float(np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else 0.0
    half = float(t.ppf(0.5 + level / 2, n - 1)) * error if n > 1 else 0.0
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def correlation(first: Floats, second: Floats) -> float | None:
    """Pearson correlation in [-1, 1]; None with fewer than three values or where one side does not vary."""
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])

"""What the curated data looks like: statistics for the report, none of which training reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

from sera_core.records import Floats, Pair


def flip_auc(margins: Floats, pairs: Sequence[Pair]) -> float | None:
    """Area under the ROC curve of -margin as a detector of flipped labels; 0.5 is chance, None where unknown."""
    flipped = np.array([pair.flipped is True for pair in pairs])
    if flipped.all() or not flipped.any() or any(pair.flipped is None for pair in pairs):
        return None
    statistic = mannwhitneyu(-margins[flipped], -margins[~flipped]).statistic
    return float(statistic / (flipped.sum() * (~flipped).sum()))


def flipped_share(pairs: Sequence[Pair]) -> float | None:
    """Share of pairs whose label is known to be flipped; None where it is unknown for any."""
    if not pairs or any(pair.flipped is None for pair in pairs):
        return None
    return float(np.mean([pair.flipped is True for pair in pairs]))


def length_advantage(pairs: Sequence[Pair]) -> float | None:
    """Mean of len(chosen) - len(rejected) in tokens; None without pairs."""
    return float(np.mean([len(pair.chosen.ids) - len(pair.rejected.ids) for pair in pairs])) if pairs else None


def agreement(grades: Floats, count: int) -> float | None:
    """Share of generated pairs whose chosen response a judge grades higher, ties one half.

    `grades` float64 [2 count]: of all chosen responses, then of all rejected ones.
    """
    if count == 0:
        return None
    difference: NDArray[np.float64] = grades[:count] - grades[count:]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))

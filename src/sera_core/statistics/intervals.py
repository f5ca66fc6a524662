"""Means over seeds and prompts with the interval that both sources of chance call for.

A seed draws a run, and a prompt draws an outcome. The prompts of two seeds may be the same ones, other ones, or partly
the same. With m_s the mean of seed s, the variance of the mean of S seeds is

    V / S + C

where V is the sample variance of the m_s, which holds all that differs between seeds (the prompts too, where each seed
has its own), and C the mean covariance of two seeds' m_s that comes from the prompts they share. C is what a bootstrap
would find that draws prompts for all seeds at once; a mean's bootstrap has a closed form, so nothing is drawn.

Seeds are few, so the quantile is Student's, with (S - 1) (1 + S C / V)^2 degrees of freedom: S - 1 where no prompts
are shared, more where they weigh. V is noisy. In that ratio it is taken (S + 3) / (S - 1) times as large, which for
three seeds brings the coverage from 92 % to 95 %; and it is never taken to be less than what one draw in 40 would give,
were prompts the only chance there is, nor less than if one outcome of one seed were another. Outcomes come in steps,
such as 0, 1/2 and 1, so the means of a few prompts often agree exactly, which does not mean that seeds do. Outcomes
that do not vary at all say nothing about chance: then there is no interval. Percentiles of a bootstrap over seeds and
prompts are no alternative: depending on which of the two matters, they cover from 77 % to 99 %.

Source: Obuchowski and Rockette 1995 (readers and cases for seeds and prompts), degrees of freedom after Hillis 2007.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from sera_core.records import Floats

ALPHA = 0.05
LEVEL = 1 - ALPHA
WHOLE = ""
"""The one prompt of a run without evidence by prompt: its outcome is the run's mean."""
_LUCK = 1 / 40
# Outcomes and standard errors this much smaller than the figures they belong to are those of rounding.
_ROUNDING = 1e-9

Outcomes = Mapping[int, Mapping[str, float]]
"""Seed to prompt to mean over the prompt's samples."""
Bounds = tuple[float, float]
Covers = Literal["seeds and prompts", "seeds", "prompts", "nothing"]
SHARE: Bounds = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over `seeds` seeds with its interval at `LEVEL`.

    Attributes:
        mean: the mean over seeds of each seed's mean over prompts.
        low: the lower end, within the metric's bounds; None where nothing says how far to go, because there is but one
            outcome, or because none differs from another though they may.
        high: the upper end; None as `low`.
        se: standard error of the mean; None as `low`.
        df: degrees of freedom of the quantile; None as `low`.
        shared: the part of the squared `se` that more seeds would not lessen, because the seeds share prompts; >= 0.
        seeds: how many.
        prompts: how many different ones; 0 where a seed has no evidence by prompt, or that of one prompt alone.
        covers: another draw of what the interval speaks of. ``prompts`` is one seed, which says nothing about another;
            ``seeds`` is where `prompts` is 0; ``nothing`` is without an interval.
    """

    mean: float
    low: float | None
    high: float | None
    se: float | None
    df: float | None
    shared: float
    seeds: int
    prompts: int
    covers: Covers


def mean_interval(outcomes: Outcomes, bounds: Bounds | None = None) -> Interval | None:
    """Mean of a metric over seeds and prompts, every seed counting alike; None without any outcome.

    `bounds` are the least and the largest possible value. The order of seeds and prompts does not matter.
    """
    values = matrix(outcomes)
    whole = any(WHOLE in each for each in outcomes.values())
    return interval(values, bounds, 0 if whole else None) if len(values) else None


def paired_interval(ours: Outcomes, theirs: Outcomes, bounds: Bounds | None = None) -> Interval | None:
    """Mean of `ours` - `theirs` over the seeds and prompts that both have; None without a seed in common.

    Seeds are paired, and within a seed prompts are. A seed in which the two have no prompt in common, such as one
    without evidence by prompt, gives the difference of its two means. `bounds` are those of the metric itself.
    """
    wide = None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
    return mean_interval(differences(ours, theirs), wide)


def differences(ours: Outcomes, theirs: Outcomes) -> Outcomes:
    """`ours` - `theirs` by seed and prompt, of the seeds that both have; see `paired_interval`."""
    common = [seed for seed in sorted(ours.keys() & theirs.keys()) if ours[seed] and theirs[seed]]
    return {seed: _paired(ours[seed], theirs[seed]) for seed in common}


def _paired(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    both = sorted(ours.keys() & theirs.keys())
    if both:
        return {prompt: ours[prompt] - theirs[prompt] for prompt in both}
    return {WHOLE: float(np.mean([*ours.values()]) - np.mean([*theirs.values()]))}


def matrix(outcomes: Outcomes) -> Floats:
    """Outcomes as float64 [seeds, prompts], nan where a seed lacks a prompt; both ascending, empty seeds left out."""
    kept = {seed: outcomes[seed] for seed in sorted(outcomes) if outcomes[seed]}
    table = pd.DataFrame.from_dict(kept, orient="index", dtype=np.float64)
    values: Floats = table.reindex(columns=sorted(table.columns)).to_numpy()
    return values


def interval(values: Floats, bounds: Bounds | None = None, prompts: int | None = None) -> Interval:
    """The interval of `values` float64 [S, P], S >= 1, nan where a seed lacks a prompt; each seed has at least one.

    `prompts` is how many of the columns are prompts, None for all and 0 where one is a whole run.
    """
    count = values.shape[1] if prompts is None else prompts
    return combined(np.nanmean(values, axis=1), prompt_covariance(values), count, bounds, least_step(values))


def least_step(values: Floats) -> float:
    """The least by which one outcome could change the mean of its seed, judged by the outcomes; 0 if all are alike.

    `values` as in `interval`. The least distance of two different outcomes is taken for the step they come in.
    """
    gaps = np.diff(np.unique(values[~np.isnan(values)]))
    gaps = gaps[gaps > _ROUNDING * np.nanmax(np.abs(values))]
    return float(gaps.min() / (~np.isnan(values)).sum(axis=1).max()) if len(gaps) else 0.0


def prompt_covariance(values: Floats) -> Floats:
    """Covariance float64 [S, S] of the seeds' means under a bootstrap over prompts.

    The bootstrap draws prompts for all seeds at once, so seeds that share none have covariance 0. The diagonal is nan
    for a seed with a single prompt. `values` is float64 [S, P], nan where a seed lacks a prompt.
    """
    there = ~np.isnan(values)
    counts = there.sum(axis=1)
    single = counts < 2
    off = np.where(there, values - np.nanmean(values, axis=1, keepdims=True), 0.0)
    # A bootstrap's variance is too small by (n - 1) / n.
    off /= np.sqrt(counts * np.where(single, 1, counts - 1))[:, None]
    found: Floats = off @ off.T
    found[single, single] = np.nan
    return found


def combined(
    means: Floats, covariance: Floats, prompts: int, bounds: Bounds | None = None, step: float = 0.0
) -> Interval:
    """The interval of the mean of one value per seed.

    Args:
        means: float64 [S], S >= 1.
        covariance: float64 [S, S], what chance in the prompts contributes to `means`; nan on the diagonal of a seed
            without evidence by prompt.
        prompts: how many different prompts are behind `means`; 0 where a seed has no evidence by prompt.
        bounds: the least and the largest possible value; the interval is cut there.
        step: see `least_step`; 0 where nothing says so.

    Returns:
        Without an interval where nothing varies, but for two cases: a mean of 0 that is no share is one of identical
        things and has no chance in it; alike shares of known prompts have the interval of Wilson 1927.
    """
    seeds, mean = len(means), float(means.mean())
    known = prompts > 0 and not bool(np.isnan(covariance).any())
    se, df, shared = _chance(means, covariance, prompts if known else 0, step)
    low, high = (None, None) if se is None or df is None else _ends(mean, se, df, bounds)
    if se is not None and se <= _ROUNDING * abs(mean):
        if bounds == SHARE and prompts:
            # Outcomes that are all alike, such as 60 wins of 60, still leave a chance of others.
            low, high = map(float, proportion_confint(mean * prompts, prompts, ALPHA, method="wilson"))
        elif mean != 0 or bounds == SHARE:
            low = high = se = df = None
    covers: Covers = (
        "nothing" if low is None else "prompts" if seeds == 1 else "seeds and prompts" if known else "seeds"
    )
    return Interval(mean, low, high, se, df, shared, seeds, prompts if known else 0, covers)


def _chance(means: Floats, covariance: Floats, prompts: int, step: float) -> tuple[float | None, float | None, float]:
    """Standard error, degrees of freedom and the shared variance; `prompts` is 0 where `covariance` is not known."""
    if len(means) > 1:
        return _over_seeds(means, covariance if prompts else np.zeros_like(covariance), step)
    return (float(covariance[0, 0] ** 0.5), prompts - 1.0, 0.0) if prompts else (None, None, 0.0)


def _over_seeds(means: Floats, covariance: Floats, step: float) -> tuple[float, float, float]:
    """Standard error, degrees of freedom and the shared variance of the mean of two or more seeds."""
    seeds, own = len(means), np.diag(covariance)
    # C of the module's docstring, then V and the least values believed: by luck, and with one outcome another.
    shared = max(0.0, float(covariance.sum() - own.sum()) / (seeds * (seeds - 1)))
    by_luck = float(stats.chi2.ppf(_LUCK, seeds - 1)) / (seeds - 1)
    spread = max(float(means.var(ddof=1)), (float(own.mean()) - shared) * by_luck, step**2 / seeds)
    ratio = seeds * shared / (spread * (seeds + 3) / (seeds - 1)) if spread else 0.0
    return (spread / seeds + shared) ** 0.5, (seeds - 1) * (1 + ratio) ** 2, shared


def _ends(mean: float, se: float, df: float, bounds: Bounds | None) -> tuple[float, float]:
    """The ends, cut at the bounds unless the mean itself, an estimate, lies beyond them."""
    half = float(stats.t.ppf(0.5 + LEVEL / 2, df)) * se
    least, most = (-np.inf, np.inf) if bounds is None else bounds
    return float(max(min(least, mean), mean - half)), float(min(max(most, mean), mean + half))

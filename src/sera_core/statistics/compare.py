"""Arms against their baselines: paired differences, corrected for their number, and what they come to in words."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from sera_core.statistics.intervals import ALPHA, Interval, Outcomes, paired_interval
from sera_core.statistics.metrics import Direction, Metric

POWER = 0.8
MOST_SEEDS = 10_000
_FAR = 30.0
Verdict = Literal[
    "better", "worse", "higher", "lower", "not distinguishable", "one seed", "nothing varies", "not compared"
]


@dataclass(frozen=True, slots=True)
class Comparison:
    """An arm, or a family of arms, against its baseline by one metric.

    Attributes:
        arm: its name.
        baseline: the name of what it is compared with.
        metric: the metric's name in reports.
        difference: arm minus baseline, paired by seed and prompt; None where the two cannot be compared.
        p: two-sided probability of a difference as large by chance, were there none; None with fewer than two seeds,
            and where no outcome differs from another, though arm and baseline do.
        p_holm: `p` corrected for all comparisons made with it (Holm 1979); None as `p`.
        comparisons: how many these were.
        verdict: `better` or `worse` for a metric with a direction, else `higher` or `lower`, where `p_holm` is below
            `ALPHA`; `one seed` gives none, as it says nothing about another, and neither does a difference in which
            `nothing varies`: so few or such coarse outcomes do not show how far chance goes.
        seeds_needed: see `seeds_needed`; for a verdict among as many comparisons.
        reason: why there is no difference; None where there is one.
    """

    arm: str
    baseline: str
    metric: str
    difference: Interval | None
    p: float | None
    p_holm: float | None
    comparisons: int
    verdict: Verdict
    seeds_needed: int | None
    reason: str | None = None

    @property
    def p_shown(self) -> str:
        """`p_holm` as tables show it."""
        return p_text(self.p_holm)

    @property
    def needed_shown(self) -> str:
        """`seeds_needed` as tables show it; more than `MOST_SEEDS` is said so, a dash is for no difference to see."""
        if self.seeds_needed is not None:
            return str(self.seeds_needed)
        gap = self.difference
        return f">{MOST_SEEDS}" if gap is not None and self.p is not None and gap.mean != 0 else "-"


def compare(outcomes: Mapping[str, Outcomes], baselines: Mapping[str, str], metric: Metric) -> tuple[Comparison, ...]:
    """Every arm of `baselines` against its baseline, in their order; Holm's correction is over all of them.

    Args:
        outcomes: arm to its outcomes of `metric`; an arm that lacks the metric may be missing.
        baselines: arm to the arm it is compared with.
        metric: whose direction and bounds apply.
    """
    found = {
        arm: paired_interval(outcomes.get(arm, {}), outcomes.get(base, {}), metric.bounds)
        for arm, base in baselines.items()
    }
    reasons = {
        arm: None if found[arm] else why_not({name: bool(outcomes.get(name)) for name in (arm, base)}, metric.title)
        for arm, base in baselines.items()
    }
    return judged(found, reasons, baselines, metric)


def why_not(have: Mapping[str, bool], what: str) -> str:
    """Why two arms or families share no seed; `have` says of each by name whether any of its runs has `what`."""
    lacking = [name for name, found in have.items() if not found]
    if not lacking:
        return "no seed in common"
    return f"no finished run of {'either' if len(lacking) == len(have) else lacking[0]} has {what}"


def judged(
    differences: Mapping[str, Interval | None],
    reasons: Mapping[str, str | None],
    baselines: Mapping[str, str],
    metric: Metric,
) -> tuple[Comparison, ...]:
    """The comparisons that differences by arm come to, in the order of `baselines`; Holm's correction is over all."""
    tested = {arm: p_value(gap) for arm, gap in differences.items() if gap is not None}
    known = {arm: p for arm, p in tested.items() if p is not None}
    corrected = dict(zip(known, holm([*known.values()]), strict=True))
    return tuple(
        Comparison(
            arm,
            base,
            metric.name,
            differences[arm],
            known.get(arm),
            corrected.get(arm),
            len(known),
            verdict_of(differences[arm], corrected.get(arm), metric.direction),
            None if (gap := differences[arm]) is None else seeds_needed(gap, len(known)),
            reasons[arm],
        )
        for arm, base in baselines.items()
    )


def p_value(difference: Interval) -> float | None:
    """Two-sided p of Student's test that goes with the interval: below `ALPHA` where it excludes 0.

    None where the interval does not speak of other seeds, and where a difference other than 0 does not vary; 1 for the
    difference of identical arms.
    """
    if difference.seeds < 2 or difference.se is None:
        return None
    if difference.se == 0:
        return 1.0 if difference.mean == 0 else None
    return float(2 * stats.t.sf(abs(difference.mean) / difference.se, difference.df))


def p_text(p: float | None) -> str:
    """A probability as tables show it; a dash where there is none."""
    return "-" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p values, in the same order. Source: Holm 1979."""
    return [float(p) for p in multipletests(p_values, ALPHA, method="holm")[1]] if p_values else []


def verdict_of(difference: Interval | None, p: float | None, direction: Direction) -> Verdict:
    """What a difference with its corrected `p` comes to in words."""
    if difference is None:
        return "not compared"
    if p is None:
        return "one seed" if difference.seeds < 2 else "nothing varies"
    if p >= ALPHA:
        return "not distinguishable"
    if direction == 0:
        return "higher" if difference.mean > 0 else "lower"
    return "better" if difference.mean * direction > 0 else "worse"


def seeds_needed(difference: Interval, comparisons: int = 1) -> int | None:
    """The least number of seeds that would see a difference of the observed size with probability `POWER`.

    See means Student's two-sided test at `ALPHA` / `comparisons`: the first, strictest step of Holm's correction, so
    that no seeds are called for which gave no verdict. The spread over seeds is the observed one, and prompts that the
    seeds share stay the same. None for a difference of 0 or without a standard error, with one seed, and where
    `MOST_SEEDS` would not do. The observed difference is itself uncertain: the number says what kind of effort is
    called for.
    """
    if difference.seeds < 2 or not difference.se or difference.mean == 0:
        return None
    spread = max(0.0, difference.se**2 - difference.shared) * difference.seeds
    level = ALPHA / max(1, comparisons) / 2

    def reached(seeds: int) -> bool:
        error = math.sqrt(spread / seeds + difference.shared)
        return power(abs(difference.mean) / error, seeds, level) >= POWER

    most = 2
    while not reached(most):
        if most >= MOST_SEEDS:
            return None
        most = min(2 * most, MOST_SEEDS)
    candidates = range(2, most + 1)
    return candidates[bisect_left(candidates, True, key=reached)]


def power(distance: float, seeds: int, level: float) -> float:
    """Chance that Student's one-sided test at `level` sees a mean `distance` standard errors away."""
    if distance < _FAR:
        return float(TTestPower().power(distance / math.sqrt(seeds), seeds, level, alternative="larger"))
    # scipy's noncentral t fails far out. There the standard error's chance is all that is left.
    return float(stats.chi2.cdf((seeds - 1) * (distance / stats.t.isf(level, seeds - 1)) ** 2, seeds - 1))

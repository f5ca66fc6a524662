"""Families of arms at equal KL: what a method reaches for how far it moved from the initial policy.

A longer step raises the win rate by itself, so two methods are compared where they went equally far. The settings of a
family are points (sqrt KL, value) of each seed, joined by straight lines: near the initial policy rewards grow as the
root of the KL (Gao, Schulman and Hilton 2023). The gap of two families in a seed is the mean vertical distance of their
lines over the range of sqrt KL that both span; nothing is extrapolated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sera_core.records import Floats
from sera_core.statistics.compare import Comparison, judged, why_not
from sera_core.statistics.intervals import WHOLE, Interval, Outcomes, combined, mean_interval
from sera_core.statistics.metrics import KL, Metric

Families = Mapping[str, Sequence[str]]
"""Family to the names of its arms."""
DRAWS = 400


@dataclass(frozen=True, slots=True)
class Point:
    """One arm of a family: its KL to the initial policy in nats, and the value it reached there."""

    arm: str
    kl: Interval
    value: Interval


@dataclass(frozen=True, slots=True)
class AtEqualKL:
    """A family against another at equal KL.

    Attributes:
        comparison: the mean gap of the two lines, paired by seed, as a difference like any other.
        kl: least and largest KL in nats that both lines span, each a mean over the compared seeds; None without any.
        left_out: seeds in which the two lines share no KL.
        inside: how many settings of the family and of the other one lie within the KL that both lines span, in at
            least half of the compared seeds; fewer than two say that a line stands in for settings.
    """

    comparison: Comparison
    kl: tuple[float, float] | None
    left_out: tuple[int, ...]
    inside: tuple[int, int] = (0, 0)


Line = tuple[Floats, Floats]
"""Roots of KL, float64 [n] ascending without repetition, and the values there, float64 [n]."""


def frontier(
    arms: Sequence[str], values: Mapping[str, Outcomes], kls: Mapping[str, Outcomes], metric: Metric
) -> tuple[Point, ...]:
    """The points of a family by ascending KL; arms that lack either metric are left out.

    `values` and `kls` map arms to their outcomes of `metric` and of the KL to the initial policy.
    """
    found = []
    for arm in arms:
        kl, value = mean_interval(kls.get(arm, {}), KL.bounds), mean_interval(values.get(arm, {}), metric.bounds)
        if kl is not None and value is not None:
            found.append(Point(arm, kl, value))
    return tuple(sorted(found, key=lambda point: (point.kl.mean, point.arm)))


def family_baselines(families: Families, baselines: Mapping[str, str]) -> dict[str, str]:
    """Family to the one other family that the baselines of its arms belong to; families without one are left out.

    `baselines` maps arms to the arms they are compared with.
    """
    home = {arm: family for family, arms in families.items() for arm in arms}
    found = {}
    for family, arms in families.items():
        others = {home[base] for arm in arms if (base := baselines.get(arm)) in home} - {family}
        if len(others) == 1:
            found[family] = others.pop()
    return found


def line_of(points: Iterable[tuple[float, float]]) -> Line:
    """The line through points (KL in nats, value); a KL below 0 counts as 0, points of one KL are averaged."""
    kl, value = np.array(sorted(points), dtype=np.float64).reshape(-1, 2).T
    x, which = np.unique(_root(kl), return_inverse=True)
    return x, np.bincount(which, weights=value, minlength=len(x)) / np.maximum(np.bincount(which, minlength=len(x)), 1)


def equal_kl_gap(ours: Line, theirs: Line) -> tuple[float, float, float] | None:
    """Mean of `ours` - `theirs` over the roots of KL that both span, with the least and the largest of these.

    None where they span none in common. A line may be a single point.
    """
    if not len(ours[0]) or not len(theirs[0]):
        return None
    least, most = max(ours[0][0], theirs[0][0]), min(ours[0][-1], theirs[0][-1])
    if least > most:
        return None
    knots = np.unique(np.clip(np.concatenate([ours[0], theirs[0]]), least, most))
    gaps = np.interp(knots, *ours) - np.interp(knots, *theirs)
    # The gap is linear between knots, so that the trapezoid rule is exact.
    mean = gaps[0] if least == most else np.trapezoid(gaps, knots) / (most - least)
    return float(mean), float(least), float(most)


def compare_families(
    families: Families,
    values: Mapping[str, Outcomes],
    kls: Mapping[str, Outcomes],
    baselines: Mapping[str, str],
    metric: Metric,
) -> tuple[AtEqualKL, ...]:
    """Every family of `baselines` against its baseline at equal KL, in their order; Holm's correction is over all.

    Args:
        families: family to its arms.
        values: arm to its outcomes of `metric`.
        kls: arm to its outcomes of the KL to the initial policy.
        baselines: family to the family it is compared with, see `family_baselines`.
        metric: whose direction applies.
    """
    found = {
        family: _matched({name: families[name] for name in (family, base)}, values, kls, metric)
        for family, base in baselines.items()
    }
    gaps = {family: each.gap for family, each in found.items()}
    reasons = {family: each.reason for family, each in found.items()}
    made = {each.arm: each for each in judged(gaps, reasons, baselines, metric)}
    return tuple(AtEqualKL(made[family], each.kl, each.left_out, each.inside) for family, each in found.items())


@dataclass(frozen=True, slots=True)
class _Matched:
    gap: Interval | None
    kl: tuple[float, float] | None
    left_out: tuple[int, ...]
    inside: tuple[int, int]
    reason: str | None


def _matched(
    families: Families, values: Mapping[str, Outcomes], kls: Mapping[str, Outcomes], metric: Metric
) -> _Matched:
    """The first of two families against the second."""
    have = {name: _seeds(arms, values, kls) for name, arms in families.items()}
    seeds = sorted(set.intersection(*have.values()))
    sides = {seed: [_Side.of(arms, seed, values, kls) for arms in families.values()] for seed in seeds}
    spans = {seed: equal_kl_gap(first.line(), second.line()) for seed, (first, second) in sides.items()}
    kept = {seed: span for seed, span in spans.items() if span is not None}
    left_out = tuple(seed for seed in seeds if seed not in kept)
    if not kept:
        nothing = why_not({name: bool(each) for name, each in have.items()}, f"both {metric.title} and KL")
        reason = "the two span no KL in common in any seed" if seeds else nothing
        return _Matched(None, None, left_out, (0, 0), reason)
    means, least, most = np.array([*kept.values()]).T
    covariance, prompts = _covariance([sides[seed] for seed in kept])
    kl = (float(np.mean(least**2)), float(np.mean(most**2)))
    ours, theirs = (_inside([sides[seed][side] for seed in kept], least, most) for side in (0, 1))
    return _Matched(combined(means, covariance, prompts), kl, left_out, (ours, theirs), None)


def _inside(sides: Sequence[_Side], least: Floats, most: Floats) -> int:
    """How many settings lie within the roots of KL from `least` to `most` of a seed, in at least half of the seeds."""
    counts = Counter(
        arm
        for side, low, high in zip(sides, least, most, strict=True)
        for arm, kl, _ in side.points
        if low <= _root(_mean(kl)) <= high
    )
    return sum(2 * count >= len(sides) for count in counts.values())


def _seeds(arms: Sequence[str], values: Mapping[str, Outcomes], kls: Mapping[str, Outcomes]) -> set[int]:
    return {seed for arm in arms for seed in values.get(arm, {}).keys() & kls.get(arm, {}).keys()}


def _mean(outcomes: Mapping[str, float]) -> float:
    return float(np.mean([*outcomes.values()]))


def _root(kl: Floats | float) -> Floats:
    root: Floats = np.sqrt(np.maximum(kl, 0.0))
    return root


@dataclass(frozen=True, slots=True)
class _Side:
    """A family in one seed: for each arm its name, then KL and value by prompt."""

    points: tuple[tuple[str, Mapping[str, float], Mapping[str, float]], ...]

    @classmethod
    def of(cls, arms: Sequence[str], seed: int, values: Mapping[str, Outcomes], kls: Mapping[str, Outcomes]) -> _Side:
        have = [arm for arm in arms if values.get(arm, {}).get(seed) and kls.get(arm, {}).get(seed)]
        return cls(tuple((arm, kls[arm][seed], values[arm][seed]) for arm in have))

    def line(self) -> Line:
        return line_of((_mean(kl), _mean(value)) for _, kl, value in self.points)

    def prompts(self) -> set[str]:
        return {prompt for _, *point in self.points for each in point for prompt in each}

    def drawn(self, weights: Mapping[str, Floats]) -> list[Line]:
        """The line of each draw of prompts; `weights` maps a prompt to how often each draw has it."""
        means = [[_weighted(each, weights) for each in point] for _, *point in self.points]
        return [line_of((float(kl[draw]), float(value[draw])) for kl, value in means) for draw in range(DRAWS)]


def _weighted(outcomes: Mapping[str, float], weights: Mapping[str, Floats]) -> Floats:
    counts = np.array([weights[prompt] for prompt in outcomes])
    total = counts.sum(axis=0)
    found: Floats = np.divide(
        np.array([*outcomes.values()]) @ counts, total, out=np.full(DRAWS, np.nan), where=total > 0
    )
    return found


def _covariance(sides: Sequence[Sequence[_Side]]) -> tuple[Floats, int]:
    """What chance in the prompts contributes to the seeds' gaps, see `combined`, and how many prompts there are.

    A bootstrap that draws prompts for all arms and seeds at once, each a Poisson number of times (Hanley and MacGibbon
    2006). Draws without a KL in common are left out; where these are most, nothing is known.
    """
    unknown = np.full((len(sides), len(sides)), np.nan)
    prompts = sorted({prompt for pair in sides for side in pair for prompt in side.prompts()})
    if WHOLE in prompts:
        return unknown, 0
    counts = np.random.default_rng(0).poisson(1.0, (len(prompts), DRAWS)).astype(np.float64)
    weights = dict(zip(prompts, counts, strict=True))
    gaps = [
        [equal_kl_gap(*lines) for lines in zip(first.drawn(weights), second.drawn(weights), strict=True)]
        for first, second in sides
    ]
    whole = [[gap[0] for gap in draw if gap is not None] for draw in zip(*gaps, strict=True) if None not in draw]
    if len(whole) <= DRAWS // 2:
        return unknown, 0
    return np.atleast_2d(np.cov(np.array(whole).T)), len(prompts)

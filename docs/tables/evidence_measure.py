"""Measures what evidence.yaml asks of the runs of the ablations evidence, spurious and frontier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from sera_core.data.tables import read_candidates, read_pairs
from sera_core.models.load import load_policy
from sera_core.models.logps import Group, default_budget, group_logps
from sera_core.report.study import Run, Study
from sera_core.statistics.compare import holm, p_value
from sera_core.statistics.frontier import compare_families, family_baselines
from sera_core.statistics.intervals import WHOLE, Interval, Outcomes, differences, mean_interval
from sera_core.statistics.metrics import KL, METRICS, WIN_RATE
from sera_core.statistics.outcomes import read_outcomes

CLAIMS = Path(__file__).parent / "evidence.yaml"
NOISES = ("0.0", "0.2", "0.4")
RHOS = ("0.0", "0.2", "0.6")
# Pairs of arms whose difference is followed over the strength of the spurious correlation.
FOLLOWED = (
    ("sera-dpo", "dpo"),
    ("sera-dpo", "iterative-dpo"),
    ("irm-only", "iterative-dpo"),
    ("spa", "dpo"),
    ("dro-dpo", "dpo"),
)


@dataclass(frozen=True)
class Figure:
    """A figure of a run that is no metric of every report, and where it is read; `digits` is how it is shown."""

    read: Callable[[Run], float | None]
    digits: int = 3


def _offline(run: Run) -> Mapping[str, Any]:
    found: Mapping[str, Any] = run.report["selection"]["offline"]
    return found


def flips_removed(run: Run) -> float | None:
    """Share of known wrong labels after selection, less the share before."""
    before, after = _offline(run).get("flipped_share"), _offline(run).get("kept_flipped_share")
    return None if not before else after - before


def weight_of_flips(run: Run) -> float | None:
    """Mean weight of training pairs with a flipped label, less that of the others."""
    frame = run.evidence("train/pairs.arrow")
    assert frame is not None, run.path
    flipped = frame["flipped"].eq(True).to_numpy(dtype=bool)
    weight = frame["weight"].to_numpy(dtype=np.float64)
    return float(np.nanmean(weight[flipped]) - np.nanmean(weight[~flipped])) if flipped.any() else None


def off_policy(run: Run) -> float:
    """Nats per token by which the initial policy finds offline responses less likely than its own answers."""
    model = load_policy(run.manifest["initial_policy"]["path"])
    answers = read_candidates(run.path / "iter_0" / "sample" / "candidates.arrow")
    own = [
        Group(prompt.ids, tuple(response.ids for response in responses))
        for prompt, responses in zip(answers.prompts, answers.responses, strict=True)
    ]
    offline = [
        Group(pair.prompt.ids, (pair.chosen.ids, pair.rejected.ids))
        for pair in read_pairs(run.path / "data" / "pairs.arrow").pairs
    ]

    def per_token(groups: Sequence[Group]) -> float:
        with torch.inference_mode():
            found = group_logps(model, groups, token_budget=default_budget(model.device))
        return float(found.sums.sum() / found.lengths.sum())

    return per_token(own) - per_token(offline)


OTHERS: Mapping[str, Figure] = {
    "off_policy": Figure(off_policy, 2),
    "flips_removed": Figure(flips_removed),
    "flip_auc": Figure(lambda run: _offline(run).get("flip_auc"), 2),
    "own_right": Figure(lambda run: (run.report["selection"].get("generated") or {}).get("accuracy"), 2),
    "length_correlation": Figure(lambda run: run.report["probes"]["rho0"]["length_correlation"], 2),
    "weight_of_flips": Figure(weight_of_flips, 2),
}
# The least difference worth having: a claimed gain whose whole interval lies below it does not hold.
WORTH = {"win_rate_vs_initial": 0.02, "accuracy": 0.02, "response_length": 0.2, "length_correlation": 0.05}


@dataclass(frozen=True)
class Check:
    """One line of evidence.yaml."""

    text: str
    ours: str
    theirs: str | None = None
    figure: str = WIN_RATE.name
    sign: int = 1
    noise: tuple[str, ...] = NOISES
    growth: bool = False
    margin: bool = False
    neutral: float = 0.0

    @property
    def digits(self) -> int:
        """Decimals of its figure."""
        return OTHERS[self.figure].digits if self.figure in OTHERS else METRICS[self.figure].digits

    @property
    def points(self) -> tuple[str, ...]:
        """Where it is measured: each noise rate, or once over both ends."""
        return ("growth",) if self.growth else self.noise

    def key(self, point: str) -> str:
        """Its name in evidence.json."""
        return f"{self.figure}: {self.ours} - {self.theirs or self.neutral}, {point}"


def read_claims() -> list[dict[str, Any]]:
    """evidence.yaml, its checks as `Check`."""
    papers = yaml.safe_load(CLAIMS.read_text("utf-8"))
    for paper in papers:
        for kind in ("claims", "causes"):
            paper[kind] = [Check(**{**raw, "noise": tuple(raw.get("noise", NOISES))}) for raw in paper[kind]]
    return list(papers)


Read = Callable[[str, str], Outcomes]
"""Arm and figure to outcomes."""


def outcomes(study: Study, arm: str, figure: str) -> Outcomes:
    """A figure of the finished runs of an arm, by prompt where it has evidence by prompt."""
    if figure in METRICS:
        return read_outcomes(study.folders(arm), METRICS[figure])
    values = {run.seed: OTHERS[figure].read(run) for run in study.of(arm)}
    return {seed: {WHOLE: float(value)} for seed, value in values.items() if value is not None}


def measured(read: Read, check: Check, point: str) -> Interval | None:
    """A check's figure with its interval; None where the arm has no such figure there."""

    def gap(noise: str) -> Outcomes:
        ours = read(f"{check.ours},noise={noise}", check.figure)
        if check.theirs is None:
            return {seed: {name: value - check.neutral for name, value in each.items()} for seed, each in ours.items()}
        return differences(ours, read(f"{check.theirs},noise={noise}", check.figure))

    return mean_interval(differences(gap(NOISES[-1]), gap(NOISES[0])) if check.growth else gap(point))


def claim_p(check: Check, found: Interval) -> float:
    """Two-sided p against no difference, or, where as good is good enough, against the least that would be worse."""
    p = p_value(replace(found, mean=found.mean + limit(check)))
    assert p is not None, check
    return p


def limit(check: Check) -> float:
    """What is added to a difference before it is tested."""
    return check.sign * WORTH[check.figure] if check.margin else 0.0


def plain(found: Interval) -> dict[str, float | int | None]:
    """An interval as JSON keeps it."""
    return {"mean": found.mean, "low": found.low, "high": found.high, "seeds": found.seeds}


def measure(evidence: Study, spurious: Study, frontier: Study) -> dict[str, Any]:
    """All figures of the page."""
    # Many checks are about the same arms, whose evidence is some thousand files.
    read = cache(partial(outcomes, evidence))
    checks = [(kind, each) for paper in read_claims() for kind in ("claims", "causes") for each in paper[kind]]
    intervals = {
        (kind, check, point): found
        for kind, check in checks
        for point in check.points
        if (found := measured(read, check, point)) is not None
    }
    claims = {key: claim_p(key[1], found) for key, found in intervals.items() if key[0] == "claims"}
    corrected = dict(zip(claims, holm([*claims.values()]), strict=True))
    return {
        "runs": {study.name: len(study.runs) for study in (evidence, spurious, frontier)},
        "seeds": {study.name: len(study.seeds) for study in (evidence, spurious, frontier)},
        "arms": {arm: metrics(read, arm) for arm in evidence.arms},
        "checks": {
            key[1].key(key[2]): {**plain(found), **({"p_holm": corrected[key]} if key in corrected else {})}
            for key, found in intervals.items()
        },
        "spurious": followed(cache(partial(outcomes, spurious))),
        "equal_kl": families(frontier),
    }


def metrics(read: Read, arm: str) -> dict[str, Any]:
    """Metric to interval, of one arm."""
    found = {name: mean_interval(read(arm, name), metric.bounds) for name, metric in METRICS.items()}
    return {name: plain(value) for name, value in found.items() if value is not None}


def followed(read: Read) -> dict[str, dict[str, Any]]:
    """Differences of win rates and of length correlations by rho, and from its least to its largest value."""
    found: dict[str, dict[str, Any]] = {}
    for ours, theirs in FOLLOWED:
        for figure in (WIN_RATE.name, "length_correlation"):
            gaps = {rho: differences(*(read(f"{arm},rho={rho}", figure) for arm in (ours, theirs))) for rho in RHOS}
            gaps["change"] = differences(gaps[RHOS[-1]], gaps[RHOS[0]])
            each = {rho: mean_interval(gap) for rho, gap in gaps.items()}
            found[f"{figure}: {ours} - {theirs}"] = {rho: plain(gap) for rho, gap in each.items() if gap is not None}
    return found


def families(study: Study) -> list[dict[str, Any]]:
    """Every family against its baseline at equal KL."""
    values, kls = ({arm: read_outcomes(study.folders(arm), metric) for arm in study.arms} for metric in (WIN_RATE, KL))
    baselines = family_baselines(study.families, study.baseline)
    found = compare_families(study.families, values, kls, baselines, WIN_RATE)
    return [
        {
            "ours": each.comparison.arm,
            "theirs": each.comparison.baseline,
            **plain(each.comparison.difference),
            "p_holm": each.comparison.p_holm,
            "verdict": each.comparison.verdict,
            "kl": each.kl,
            "inside": each.inside,
        }
        for each in found
        if each.comparison.difference is not None
    ]

"""What an ablation found, arm by arm: means with intervals, paired differences to a baseline, families at equal KL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from scipy import stats

from sera_core.ablating.jobs import Result
from sera_core.ablation import Ablation
from sera_core.statistics.compare import POWER, Comparison, compare
from sera_core.statistics.frontier import AtEqualKL, compare_families, family_baselines
from sera_core.statistics.intervals import ALPHA, LEVEL, Interval, mean_interval
from sera_core.statistics.metrics import ACCURACY, GOLD, KL, LENGTH, WIN_RATE, Metric
from sera_core.statistics.outcomes import iteration_outcomes, reported
from sera_core.statistics.wording import Coverage

ArmOutcomes = dict[str, dict[int, dict[str, float]]]
"""Arm to seed to prompt to mean over the prompt's samples."""
_NONE = "-"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over n seeds with Student's interval at `LEVEL`.

    The ends are None with a single seed, and where equal values other than 0 do not show how far chance goes.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of independent values, at least one."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2 or (mean and np.allclose(array, mean, rtol=1e-9, atol=0.0)):
        return Estimate(mean, None, None, len(array))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(array) - 1) * stats.sem(array))
    return Estimate(mean, mean - half, mean + half, len(array))


def shown(value: Estimate | Interval, digits: int, sign: str = "") -> str:
    """``mean [low, high]``, or the mean alone where there is no interval."""
    text = f"{value.mean:{sign}.{digits}f}"
    return text if value.low is None else f"{text} [{value.low:{sign}.{digits}f}, {value.high:{sign}.{digits}f}]"


def outcomes_of(results: Sequence[Result], metric: Metric) -> ArmOutcomes:
    """Outcomes of the finished runs that have the metric, prompt by prompt where their folders hold evidence.

    Raises:
        StoreError: a file of evidence is damaged.
    """
    found: ArmOutcomes = {}
    for result in results:
        if result.report is not None:
            folder = Path(result.out) / f"iter_{result.report.get('iteration')}"
            outcomes = iteration_outcomes(folder, result.report, metric)
            if outcomes:
                found.setdefault(result.arm, {})[result.seed] = outcomes
    return found


def deciding(results: Sequence[Result]) -> Metric:
    """What arms are compared by: the win rate, or the held-out accuracy where nothing judged."""
    reports = [result.report for result in results if result.report is not None]
    judged = any(reported(report, WIN_RATE.name) is not None for report in reports)
    return WIN_RATE if judged or not reports else ACCURACY


def ablation_table(ablation: Ablation, results: Sequence[Result]) -> Group:
    """The arms, and their differences to baselines where there are any."""
    tables = (arms_table(ablation, results), versus_table(ablation, results))
    return Group(*(table for table in tables if table is not None))


def arms_table(ablation: Ablation, results: Sequence[Result]) -> Table:
    """A row per arm, with the KL beside the metric that decides; metrics that no run has are left out."""
    first = deciding(results)
    outcomes = {metric: outcomes_of(results, metric) for metric in (first, KL, GOLD, LENGTH)}
    metrics = [metric for metric, found in outcomes.items() if found or metric is first]
    table = _table(
        f"{ablation.name}: {len(ablation.seeds)} seeds",
        "arm",
        [*(m.title for m in metrics), "failed"],
        arm=(arm.name for arm in ablation.arms),
    )
    intervals = {
        arm.name: [mean_interval(outcomes[metric].get(arm.name, {}), metric.bounds) for metric in metrics]
        for arm in ablation.arms
    }
    covers = Coverage.of(each for found in intervals.values() for each in found)
    for arm in ablation.arms:
        found = intervals[arm.name]
        failed = sum(result.arm == arm.name and result.error is not None for result in results)
        cells = [
            _around(value, metric.digits) + covers.mark(value) for value, metric in zip(found, metrics, strict=True)
        ]
        table.add_row(_name(arm.name), *cells, str(failed or _NONE))
    table.caption = f"± {covers.text}" if covers.kinds else covers.text
    return table


def versus_table(ablation: Ablation, results: Sequence[Result]) -> Table | None:
    """A row per arm that has a baseline: paired differences of the metric that decides, with verdicts; None without."""
    if not ablation.baseline:
        return None
    metric = deciding(results)
    found = compare(outcomes_of(results, metric), ablation.baseline, metric)
    table = _table(
        f"{metric.title.capitalize()} vs baseline",
        "arm",
        _VERSUS,
        arm=(each.arm for each in found),
        baseline=(each.baseline for each in found),
    )
    for each in found:
        table.add_row(_name(each.arm), *_versus(each))
    table.caption = _caption(found)
    return table


def equal_kl(ablation: Ablation, results: Sequence[Result], metric: Metric = WIN_RATE) -> tuple[AtEqualKL, ...]:
    """Every family against its baseline's at equal KL; empty without families or baselines."""
    baselines = family_baselines(ablation.families, ablation.baseline)
    values, kls = outcomes_of(results, metric), outcomes_of(results, KL)
    return compare_families(ablation.families, values, kls, baselines, metric)


def frontier_table(ablation: Ablation, results: Sequence[Result]) -> Table | None:
    """A row per family that has a baseline: differences at equal KL of the metric that decides; None without any."""
    metric = deciding(results)
    found = equal_kl(ablation, results, metric)
    if not found:
        return None
    # How many seeds it would take stands in the report: eighty columns have room for the KL or for that.
    table = _table(f"{metric.title.capitalize()} vs baseline at equal KL", "family", (*_VERSUS[:-1], "KL", "seeds"))
    for each in found:
        gap = each.comparison.difference
        span = _NONE if each.kl is None else f"{each.kl[0]:.1f} to {each.kl[1]:.1f}"
        seeds = f"{0 if gap is None else gap.seeds}/{len(ablation.seeds)}"
        table.add_row(_name(each.comparison.arm), *_versus(each.comparison)[:-1], span, seeds)
    table.caption = _caption([each.comparison for each in found], needed=False)
    return table


# Columns of words, and how narrow they may become before words are broken.
_LEAST = {"family": 13, "baseline": 8, "verdict": 15}
# Where names have more characters than the first, they are cut after their parts, each of which stays whole up to the
# second.
_NAME, _PART = 13, 20
_VERSUS = ("baseline", "difference", "p", "verdict", "seeds\nneeded")


def _table(title: str, first: str, headings: Iterable[str], **names: Iterable[str]) -> Table:
    """An empty table; `names` are those that will stand under a heading."""
    least = _LEAST | {heading: max(_LEAST.get(heading, 0), _widest(each)) for heading, each in names.items()}
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, caption_justify="left", padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold", min_width=least.get(first))
    for heading in headings:
        words = heading in _LEAST
        table.add_column(
            heading,
            justify="left" if words else "right",
            overflow="fold",
            no_wrap=not words,
            min_width=least.get(heading),
        )
    return table


def _name(arm: str) -> str:
    """The name of an arm or family for a cell; a long one in lines, which break where its parts end."""
    return escape("\n".join(_parts(arm)))


def _parts(arm: str) -> list[str]:
    return [arm] if len(arm) <= _NAME else arm.replace(",", ",\n").split("\n")


def _widest(names: Iterable[str]) -> int:
    """The width that keeps parts of names whole."""
    return min(_PART, max((len(part) for name in names for part in _parts(name)), default=0))


def _versus(comparison: Comparison) -> tuple[str, ...]:
    return (
        _name(comparison.baseline),
        _around(comparison.difference, 3, sign="+"),
        comparison.p_shown,
        comparison.verdict,
        comparison.needed_shown,
    )


def _around(value: Interval | None, digits: int, sign: str = "") -> str:
    """``mean ± half``, with the longer half of an interval that is cut at the metric's bounds."""
    if value is None:
        return _NONE
    text = f"{value.mean:{sign}.{digits}f}"
    if value.low is None or value.high is None:
        return text
    return f"{text} ± {max(value.high - value.mean, value.mean - value.low):.{digits}f}"


def _caption(comparisons: Sequence[Comparison], *, needed: bool = True) -> str:
    """What the columns of differences mean; `needed` says whether how many seeds are needed is one of them."""
    tested = max(each.comparisons for each in comparisons)
    verdicts = {each.verdict for each in comparisons}
    told = []
    if tested:
        many, level = (f" over {tested} comparisons", f" at p < {ALPHA:.2g}/{tested}") if tested > 1 else ("", "")
        seeds = f"; seeds needed: for {POWER:.0%} power{level}" * needed
        told.append(f"Paired by seed and prompt; p: Holm{many}{seeds}.")
    if "one seed" in verdicts:
        told.append("One seed says nothing about another: no verdict without a second one.")
    if "nothing varies" in verdicts:
        told.append("Where nothing varies, outcomes are too few or too coarse to tell.")
    for reason in dict.fromkeys(each.reason for each in comparisons if each.reason):
        arms = ", ".join(escape(each.arm) for each in comparisons if each.reason == reason)
        told.append(f"Not compared: {arms}: {escape(reason)}.")
    return " ".join(told)

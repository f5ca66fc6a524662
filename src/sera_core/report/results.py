"""Results by arm with intervals, and every arm against its baseline with a verdict."""

from __future__ import annotations

from collections.abc import Mapping

from sera_core.report.blocks import NONE, Block, Section, Table, Text, between, table
from sera_core.report.study import Run, Study
from sera_core.statistics.compare import POWER, Comparison, compare
from sera_core.statistics.intervals import LEVEL, Interval, Outcomes, mean_interval
from sera_core.statistics.metrics import ACCURACY, ENDED, GOLD, KL, LENGTH, WIN_RATE, Metric
from sera_core.statistics.outcomes import read_outcomes

SHOWN = (WIN_RATE, GOLD, ACCURACY, KL, LENGTH, ENDED)
COMPARED = (WIN_RATE, GOLD, ACCURACY, KL, LENGTH)

ByArm = Mapping[str, Outcomes]


def read_all(study: Study) -> dict[str, ByArm]:
    """Outcomes of every shown metric by its name, then by arm."""
    return {metric.name: {arm: read_outcomes(study.folders(arm), metric) for arm in study.arms} for metric in SHOWN}


def results(study: Study, outcomes: Mapping[str, ByArm]) -> Section:
    """The table of all arms, then one table of comparisons per metric."""
    if study.single:
        return Section("results", "Results", (iteration_table(study.runs[0]),))
    blocks: list[Block] = [result_table(study, outcomes)]
    if study.baseline:
        blocks.append(
            Text(
                f"Below, every arm against its baseline, paired by seed and prompt. Verdicts need p < {1 - LEVEL:.2g} "
                "after Holm's correction for all comparisons of one table; an interval alone is not corrected. The "
                f"last column is how many seeds would see a difference of the observed size at {POWER:.0%} power."
            )
        )
        for metric in COMPARED:
            found = compare(outcomes[metric.name], study.baseline, metric)
            if any(each.difference is not None for each in found):
                blocks.append(comparison_table(metric, found))
    elif len(study.arms) > 1:
        blocks.append(Text("No baseline was named: give --baseline to compare every arm with one."))
    return Section("results", "Results", tuple(blocks))


def result_table(study: Study, outcomes: Mapping[str, ByArm]) -> Table:
    """A row per arm, a column per metric that any run has."""
    found = {metric: {arm: outcomes[metric.name][arm] for arm in study.arms} for metric in SHOWN}
    first = [(arm, str(len(study.of(arm)))) for arm in study.arms]
    return _metric_table(
        "Final iteration of each arm", ("arm", "seeds"), dict(zip(study.arms, first, strict=True)), found
    )


def iteration_table(run: Run) -> Table:
    """A row per iteration of one run."""
    names = {str(iteration): (str(iteration),) for iteration in range(1, len(run.reports) + 1)}
    found = {
        metric: {name: read_outcomes({run.seed: run.path}, metric, int(name)) for name in names} for metric in SHOWN
    }
    return _metric_table("After each iteration", ("iteration",), names, found)


def _metric_table(
    title: str,
    columns: tuple[str, ...],
    rows: Mapping[str, tuple[str, ...]],
    outcomes: Mapping[Metric, Mapping[str, Outcomes]],
) -> Table:
    """A row for each of `rows`, which hold the first cells by name; metrics that no row has are left out."""
    found = {
        metric: {name: mean_interval(each, metric.bounds) for name, each in by_name.items()}
        for metric, by_name in outcomes.items()
    }
    kept = [metric for metric, by_name in found.items() if any(each is not None for each in by_name.values())]
    cells = [(*first, *(_cell(found[metric][name], metric) for metric in kept)) for name, first in rows.items()]
    titles = (f"{metric.title} ({metric.unit})" for metric in kept)
    return table(title, (*columns, *titles), cells, _covered(found))


def _cell(found: Interval | None, metric: Metric) -> str:
    return NONE if found is None else between(found.mean, found.low, found.high, metric.digits)


def _covered(found: Mapping[Metric, Mapping[str, Interval | None]]) -> str:
    """What the intervals speak of."""
    kinds = {each.covers for by_arm in found.values() for each in by_arm.values() if each is not None}
    step = "Read the KL beside a win rate: a longer step wins often by itself."
    if kinds <= {"prompts", "nothing"}:
        return f"{LEVEL:.0%} intervals over prompts, of one seed; another seed may lie outside. {step}"
    return f"{LEVEL:.0%} intervals over seeds and prompts. {step}"


def comparison_table(metric: Metric, found: tuple[Comparison, ...]) -> Table:
    """A row per comparison of one metric."""
    rows = [
        (
            each.arm,
            each.baseline,
            _difference(each, metric),
            each.p_shown,
            each.verdict if each.reason is None else f"{each.verdict}: {each.reason}",
            each.needed_shown,
        )
        for each in found
    ]
    columns = ("arm", "baseline", f"difference ({metric.unit})", "p (Holm)", "verdict", "seeds needed")
    return table(f"{metric.title}: difference to the baseline", columns, rows)


def _difference(each: Comparison, metric: Metric) -> str:
    gap = each.difference
    return NONE if gap is None else between(gap.mean, gap.low, gap.high, metric.digits, "+")

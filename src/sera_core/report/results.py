"""Results by arm with intervals, and every arm against its baseline with a verdict."""

from __future__ import annotations

from collections.abc import Mapping

from sera_core.report.blocks import NONE, Block, Section, Table, Text, between, table
from sera_core.report.study import Run, Study
from sera_core.statistics.compare import POWER, Comparison, compare
from sera_core.statistics.intervals import ALPHA, Interval, Outcomes, mean_interval
from sera_core.statistics.metrics import ACCURACY, ENDED, GOLD, KL, LENGTH, WIN_RATE, Metric
from sera_core.statistics.outcomes import read_outcomes
from sera_core.statistics.wording import Coverage

SHOWN = (WIN_RATE, GOLD, ACCURACY, KL, LENGTH, ENDED)
COMPARED = (WIN_RATE, GOLD, ACCURACY, KL, LENGTH)
NEEDED = "seeds needed"
NEEDED_NOTE = (
    f"Seeds needed is how many would see a difference of the observed size at {POWER:.0%} power, with p below "
    f"{ALPHA:.2g} divided by the number of comparisons of the table: the first, strictest step of Holm's correction."
)

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
                f"Below, every arm against its baseline, paired by seed and prompt. Verdicts need p < {ALPHA:.2g} "
                "after Holm's correction for all comparisons of one table; an interval alone is not corrected. "
                + NEEDED_NOTE
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
    covers = Coverage.of(each for by_name in found.values() for each in by_name.values())
    cells = [
        (*first, *(figure(found[metric][name], metric, covers) for metric in kept)) for name, first in rows.items()
    ]
    titles = (f"{metric.title} ({metric.unit})" for metric in kept)
    step = "Read the KL beside a win rate: a longer step wins often by itself."
    return table(title, (*columns, *titles), cells, f"{covers.text} {step}")


def figure(found: Interval | None, metric: Metric, covers: Coverage, sign: str = "") -> str:
    """A cell with its interval, marked where this speaks of less than others of the table."""
    if found is None:
        return NONE
    return between(found.mean, found.low, found.high, metric.digits, sign) + covers.mark(found)


def comparison_table(metric: Metric, found: tuple[Comparison, ...]) -> Table:
    """A row per comparison of one metric."""
    covers = Coverage.of(each.difference for each in found)
    rows = [
        (
            each.arm,
            each.baseline,
            figure(each.difference, metric, covers, "+"),
            each.p_shown,
            told(each),
            each.needed_shown,
        )
        for each in found
    ]
    columns = ("arm", "baseline", f"difference ({metric.unit})", "p (Holm)", "verdict", NEEDED)
    return table(f"{metric.title}: difference to the baseline", columns, rows, covers.text)


def told(each: Comparison) -> str:
    """A verdict with the reason for none."""
    if each.verdict == "nothing varies":
        return f"{each.verdict}: too few or too coarse outcomes to tell"
    return each.verdict if each.reason is None else f"{each.verdict}: {each.reason}"

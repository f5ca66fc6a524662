"""Families of arms at equal KL: what a method reaches for how far it moved from the initial policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sera_core.report.blocks import NONE, Block, Chart, Figure, Section, Series, Table, Text, between, number, table
from sera_core.report.curves import LINES
from sera_core.report.results import ByArm
from sera_core.report.study import Study
from sera_core.statistics.frontier import AtEqualKL, compare_families, family_baselines, frontier
from sera_core.statistics.metrics import GOLD, KL, WIN_RATE, Metric

_VALUES = (WIN_RATE, GOLD)


def frontiers(study: Study, outcomes: Mapping[str, ByArm]) -> tuple[Section, ...]:
    """The section, none where the ablation has no families."""
    if not study.families:
        return ()
    blocks: list[Block] = [
        Text(
            "A longer step wins often by itself, so each family of settings is a line over the KL to the initial "
            "policy: the mean over seeds of each setting, bars of one standard error. The tables compare families "
            "where they went equally far."
        )
    ]
    for label, families in _together(study).items():
        for start in range(0, len(families), LINES):
            charts = tuple(_charts(study, outcomes, families[start : start + LINES]))
            title = f"By KL to the initial policy{f', {label}' if label else ''}"
            if charts:
                blocks.append(Figure(f"frontier-{len(blocks)}", title + (", continued" if start else ""), charts))
    blocks += _comparisons(study, outcomes)
    return (Section("frontier", "At equal KL", tuple(blocks)),)


def _together(study: Study) -> dict[str, list[str]]:
    """Families that stand at the same point of the other axes."""
    found: dict[str, list[str]] = {}
    for family, arms in study.families.items():
        points = [dict(study.variants[arm][1]) for arm in arms if arm in study.variants]
        first = points[0] if points else {}
        shared = {axis: value for axis, value in first.items() if all(point.get(axis) == value for point in points)}
        label = ", ".join(f"{axis.rpartition('.')[2]} = {value}" for axis, value in shared.items())
        found.setdefault(label, []).append(family)
    return found


def _charts(study: Study, outcomes: Mapping[str, ByArm], families: Sequence[str]) -> Iterator[Chart]:
    for metric in _VALUES:
        series = tuple(
            line for family in families if (line := _line(family, study.families[family], outcomes, metric)) is not None
        )
        if series:
            title = f"{metric.title} by KL"
            yield Chart(title, "lines", "KL to initial (nats per response)", f"{metric.title} ({metric.unit})", series)


def _line(family: str, arms: Sequence[str], outcomes: Mapping[str, ByArm], metric: Metric) -> Series | None:
    points = frontier(arms, outcomes[metric.name], outcomes[KL.name], metric)
    if not points:
        return None
    values = [point.value for point in points]
    return Series(
        label=family,
        x=tuple(point.kl.mean for point in points),
        y=tuple(value.mean for value in values),
        low=tuple(value.mean - (value.se or 0.0) for value in values),
        high=tuple(value.mean + (value.se or 0.0) for value in values),
    )


def _comparisons(study: Study, outcomes: Mapping[str, ByArm]) -> Iterator[Block]:
    baselines = family_baselines(study.families, study.baseline)
    if not baselines:
        yield Text("No family is the baseline of another: name a baseline to compare families at equal KL.")
        return
    for metric in _VALUES:
        if any(outcomes[metric.name].values()):
            found = compare_families(study.families, outcomes[metric.name], outcomes[KL.name], baselines, metric)
            yield equal_kl_table(metric, found)


def equal_kl_table(metric: Metric, found: Sequence[AtEqualKL]) -> Table:
    """A row per compared family."""
    rows = []
    for each in found:
        gap, made = each.comparison.difference, each.comparison
        rows.append(
            (
                made.arm,
                made.baseline,
                NONE if gap is None else between(gap.mean, gap.low, gap.high, metric.digits, "+"),
                NONE if each.kl is None else f"{number(each.kl[0], 2)} to {number(each.kl[1], 2)}",
                made.p_shown,
                made.verdict if made.reason is None else f"{made.verdict}: {made.reason}",
                made.needed_shown,
                ", ".join(map(str, each.left_out)) or NONE,
            )
        )
    columns = (
        "family",
        "baseline",
        f"difference ({metric.unit})",
        "KL compared (nats)",
        "p (Holm)",
        "verdict",
        "seeds needed",
        "seeds left out",
    )
    note = (
        "Mean vertical distance of the two lines over the KL that both reach, paired by seed; nothing is extrapolated."
    )
    return table(f"{metric.title} at equal KL", columns, rows, note)

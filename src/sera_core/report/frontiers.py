"""Families of arms at equal KL: what a method reaches for how far it moved from the initial policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sera_core.ablating.names import point_text
from sera_core.report.blocks import NONE, Block, Chart, Figure, Section, Series, Table, Text, number, table
from sera_core.report.curves import LINES
from sera_core.report.results import NEEDED, NEEDED_NOTE, ByArm, figure, told
from sera_core.report.study import Study
from sera_core.statistics.frontier import AtEqualKL, compare_families, family_baselines, frontier
from sera_core.statistics.metrics import ACCURACY, GOLD, KL, WIN_RATE, Metric
from sera_core.statistics.wording import Coverage

_NOTHING = (
    "Left out: no finished run has both a KL to the initial policy and a win rate, gold or held-out accuracy to set "
    "against it."
)


def frontiers(study: Study, outcomes: Mapping[str, ByArm]) -> tuple[Section, ...]:
    """The section, none where the ablation has no families."""
    if not study.families:
        return ()
    blocks: list[Block] = [
        Text(
            "A longer step wins often by itself, so each family of settings is a line over the KL to the initial "
            "policy: the mean over seeds of each setting, bars of one standard error. Lines are straight over the root "
            "of the KL, by which rewards grow near the initial policy, and so is the axis. The tables compare families "
            "where they went equally far."
        )
    ]
    metrics = _metrics(outcomes)
    if not metrics:
        blocks.append(Text(_NOTHING))
        return (Section("frontier", "At equal KL", tuple(blocks)),)
    for label, families in _together(study).items():
        for start in range(0, len(families), LINES):
            charts = tuple(_charts(study, outcomes, families[start : start + LINES], metrics))
            title = f"By KL to the initial policy{f', {label}' if label else ''}"
            if charts:
                blocks.append(Figure(f"frontier-{len(blocks)}", title + (", continued" if start else ""), charts))
    blocks += _comparisons(study, outcomes, metrics)
    return (Section("frontier", "At equal KL", tuple(blocks)),)


def _metrics(outcomes: Mapping[str, ByArm]) -> list[Metric]:
    """What lines are drawn of: the metric that decides, as on the console, and gold; none without a KL."""
    if not any(outcomes[KL.name].values()):
        return []
    deciding = WIN_RATE if any(outcomes[WIN_RATE.name].values()) else ACCURACY
    return [metric for metric in (deciding, GOLD) if any(outcomes[metric.name].values())]


def _together(study: Study) -> dict[str, list[str]]:
    """Families that stand at the same point of the other axes."""
    found: dict[str, list[str]] = {}
    for family, arms in study.families.items():
        points = [dict(study.variants[arm][1]) for arm in arms if arm in study.variants]
        first = points[0] if points else {}
        shared = {axis: value for axis, value in first.items() if all(point.get(axis) == value for point in points)}
        found.setdefault(point_text(shared, first), []).append(family)
    return found


def _charts(
    study: Study, outcomes: Mapping[str, ByArm], families: Sequence[str], metrics: Sequence[Metric]
) -> Iterator[Chart]:
    for metric in metrics:
        series = tuple(
            line for family in families if (line := _line(family, study.families[family], outcomes, metric)) is not None
        )
        if series:
            title, x_name = f"{metric.title} by KL", "KL to initial, root axis (nats per response)"
            yield Chart(title, "lines", x_name, f"{metric.title} ({metric.unit})", series, root=True)


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


def _comparisons(study: Study, outcomes: Mapping[str, ByArm], metrics: Sequence[Metric]) -> Iterator[Block]:
    baselines = family_baselines(study.families, study.baseline)
    if not baselines:
        yield Text("No family is the baseline of another: name a baseline to compare families at equal KL.")
        return
    for metric in metrics:
        found = compare_families(study.families, outcomes[metric.name], outcomes[KL.name], baselines, metric)
        yield equal_kl_table(metric, found)


def equal_kl_table(metric: Metric, found: Sequence[AtEqualKL]) -> Table:
    """A row per compared family; its note names those whose settings do not reach into the compared KL."""
    covers = Coverage.of(each.comparison.difference for each in found)
    rows = []
    for each in found:
        made = each.comparison
        rows.append(
            (
                made.arm,
                made.baseline,
                figure(made.difference, metric, covers, "+"),
                NONE if each.kl is None else f"{number(each.kl[0], 2)} to {number(each.kl[1], 2)}",
                NONE if each.kl is None else " and ".join(map(str, each.inside)),
                made.p_shown,
                told(made),
                made.needed_shown,
                ", ".join(map(str, each.left_out)) or NONE,
            )
        )
    columns = (
        "family",
        "baseline",
        f"difference ({metric.unit})",
        "KL compared (nats)",
        "settings within it, of family and baseline",
        "p (Holm)",
        "verdict",
        NEEDED,
        "seeds left out",
    )
    note = (
        "Mean vertical distance of the two lines over the KL that both reach, paired by seed; nothing is extrapolated."
    )
    return table(
        f"{metric.title} at equal KL", columns, rows, " ".join([note, covers.text, NEEDED_NOTE, *_thin(found)])
    )


def _thin(found: Sequence[AtEqualKL]) -> Iterator[str]:
    """A sentence for each family of which fewer than two settings lie in the compared KL."""
    for each in found:
        for name, other, count in zip(
            (each.comparison.arm, each.comparison.baseline),
            (each.comparison.baseline, each.comparison.arm),
            each.inside,
            strict=True,
        ):
            # A setting compared at its own KL alone needs no line.
            if each.kl is not None and count < 2 and not (count and each.kl[0] == each.kl[1]):
                yield (
                    f"{'Only one' if count else 'No'} setting of {name} lies in the KL compared with {other}: there "
                    f"the difference rests on a line between two settings of {name}, not on settings measured there."
                )

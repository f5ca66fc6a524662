"""Learning curves: what a policy is like after each iteration, arm by arm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sera_core.report.blocks import Block, Chart, Figure, Section, Series, Text
from sera_core.report.signs import Histories
from sera_core.report.study import Study
from sera_core.statistics.outcomes import reported

# A chart with more lines than it has colours cannot be read.
LINES = 8
# Field of a report, title, axis with unit.
CURVES: tuple[tuple[str, str, str], ...] = (
    ("win_rate_vs_initial", "Win rate against the initial policy", "win rate (share)"),
    ("gold_reward", "Gold reward", "gold reward (the source's unit)"),
    ("kl_to_initial", "Distance from the initial policy", "KL to initial (nats per response)"),
    ("response_length", "Length", "response length (tokens)"),
    ("eos_rate", "Answers that end by themselves", "EOS rate (share)"),
    ("chosen_logp_drift", "Held-out chosen responses", "log-prob drift (nats per response)"),
)

# What the initial policy is to itself.
_BY_DEFINITION = {"win_rate_vs_initial": 0.5, "kl_to_initial": 0.0, "chosen_logp_drift": 0.0}


def learning_curves(study: Study, histories: Histories) -> Section:
    """One figure per group of arms."""
    blocks: list[Block] = [
        Text(
            "Mean over seeds after each iteration; bars reach from the lowest to the highest seed. Iteration 0 is the "
            "initial policy."
        )
    ]
    for label, arms in study.groups.items():
        title = f"Learning curves{f', {label}' if label else ''}"
        for start in range(0, len(arms), LINES):
            charts = tuple(_charts(study, histories, arms[start : start + LINES]))
            if charts:
                blocks.append(Figure(f"curves-{len(blocks)}", title + (", continued" if start else ""), charts))
    return Section("curves", "Learning curves", tuple(blocks))


def _charts(study: Study, histories: Histories, arms: Sequence[str]) -> Iterator[Chart]:
    for name, title, axis in CURVES:
        lines = [(study.short(arm), values_of(study, histories, arm, name)) for arm in arms]
        series = tuple(curve(label, values) for label, values in lines if values)
        if series:
            yield Chart(title, "lines", "iteration", axis, series)


def values_of(study: Study, histories: Histories, arm: str, name: str) -> dict[int, list[float]]:
    """A metric of an arm in each run that has it, by iteration, the initial policy's too where it is known."""
    found: dict[int, list[float]] = {}
    for run in study.of(arm):
        start = histories[run.arm, run.seed][0]
        known = {"response_length": start.length, "eos_rate": start.ended, **_BY_DEFINITION}
        for iteration, value in ((0, known.get(name)), *((r["iteration"], reported(r, name)) for r in run.reports)):
            if value is not None:
                found.setdefault(int(iteration), []).append(value)
    return found if max(found, default=0) else {}


def curve(label: str, values: Mapping[int, Sequence[float]]) -> Series:
    """Mean, lowest and highest of the values at each iteration."""
    points = sorted(values.items())
    return Series(
        label=label,
        x=tuple(float(iteration) for iteration, _ in points),
        y=tuple(sum(each) / len(each) for _, each in points),
        low=tuple(min(each) for _, each in points),
        high=tuple(max(each) for _, each in points),
    )

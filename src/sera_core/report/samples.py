"""Whether a policy's implicit reward follows the length of its answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sera_core.evaluate.intervals import correlation
from sera_core.report.blocks import Block, Chart, Figure, Section, Series, Text, number, table
from sera_core.report.study import Study

# Points of a scatter: enough to see a shape, few enough for a page of many arms.
SHOWN = 300


def length_and_reward(study: Study) -> Section:
    """A scatter per arm of the final iteration's samples, and their correlations."""
    charts, rows = [], []
    for arm in study.arms:
        frame = pooled(study, arm)
        if frame is None:
            continue
        by_length, by_gold = (_mean(_correlations(study, arm, column)) for column in ("length", "gold"))
        title = f"{arm}: r = {number(by_length, 2)}"
        rows.append((arm, number(by_length, 2, "+"), number(by_gold, 2, "+"), str(len(frame))))
        drawn = thinned(frame)
        points = Series(arm, tuple(drawn["length"].astype(float)), tuple(drawn["reward"]))
        charts.append(Chart(title, "points", "response length (tokens)", "implicit reward (nats)", (points,)))
    if not charts:
        return Section("length", "Length and reward", (missing("samples.arrow"),))
    note = (
        "Pearson correlations of the implicit reward (log-ratio, policy to initial policy) over the samples of a run, "
        "averaged over seeds. A reward that follows length more than gold is one that length can be mistaken for."
    )
    columns = ("arm", "reward and length", "reward and gold", "samples")
    blocks: tuple[Block, ...] = (
        table("Correlations of the implicit reward", columns, rows, note),
        Figure("length", f"Implicit reward by length, at most {SHOWN} samples of each arm", tuple(charts)),
    )
    return Section("length", "Length and reward", blocks)


def missing(name: str) -> Text:
    """Says that evidence is not there."""
    return Text(f"Left out: no run has {name}. Runs of an earlier version lack it; run them again to add it.")


def pooled(study: Study, arm: str, name: str = "evaluate/samples.arrow") -> pd.DataFrame | None:
    """A table of the arm's final iteration, all seeds one below the other; None where no run has it."""
    frames = [frame for run in study.of(arm) if (frame := run.evidence(name)) is not None]
    return pd.concat(frames, ignore_index=True) if frames else None


def thinned(frame: pd.DataFrame) -> pd.DataFrame:
    """At most `SHOWN` rows, evenly spaced."""
    if len(frame) <= SHOWN:
        return frame
    return frame.iloc[np.linspace(0, len(frame) - 1, SHOWN).round().astype(int)]


def _correlations(study: Study, arm: str, column: str) -> list[float]:
    """Correlation of reward and a column in each run that has one."""
    found = []
    for run in study.of(arm):
        frame = run.evidence("evaluate/samples.arrow")
        if frame is None:
            continue
        known = frame[["reward", column]].dropna()
        value = correlation(known["reward"].to_numpy(), known[column].to_numpy(dtype=np.float64))
        if value is not None:
            found.append(value)
    return found


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

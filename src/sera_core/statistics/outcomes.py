"""Outcomes of runs, prompt by prompt, from the evidence that the evaluate stage leaves in their folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sera_core.errors import DataError
from sera_core.evidence import read_evidence
from sera_core.statistics.intervals import WHOLE
from sera_core.statistics.metrics import ACCURACY, Metric
from sera_core.workspace import read_json


def read_outcomes(
    runs: Mapping[int, Path], metric: Metric, iteration: int | None = None
) -> dict[int, dict[str, float]]:
    """Seed to prompt to mean over the prompt's samples, of finished runs of one arm.

    Args:
        runs: the folder of each seed's run.
        metric: what to read.
        iteration: None for each run's final one. Runs that ended before it are left out.

    Returns:
        Outcomes of the runs that have the metric. A run without evidence files gives its report's value as the outcome
        of the single prompt `WHOLE`.

    Raises:
        DataError: a run is not finished.
        StoreError: a file of evidence is damaged.
    """
    found = {}
    for seed, run in sorted(runs.items()):
        number = final_iteration(run) if iteration is None else iteration
        folder = run / f"iter_{number}"
        if (folder / "report.json").is_file():
            found[seed] = iteration_outcomes(folder, read_json(folder / "report.json"), metric)
    return {seed: outcomes for seed, outcomes in found.items() if outcomes}


def final_iteration(run: Path) -> int:
    """The number of a finished run's final iteration.

    Raises:
        DataError: there is no run in the folder, or it is not finished.
    """
    path = run / "manifest.json"
    number = read_json(path).get("final_iteration") if path.is_file() else None
    if number is None:
        raise DataError(f"{run} holds no finished run. Run the same command again: it continues where it stopped.")
    return int(number)


def iteration_outcomes(folder: Path, report: Mapping[str, Any], metric: Metric) -> dict[str, float]:
    """Prompt to mean over its samples, of the iteration in `folder`; prompts ascending, none where it lacks the metric.

    `report` is the iteration's, and its value the outcome of `WHOLE` where there is no file of evidence.
    """
    value, path = reported(report, metric.name), folder / "evaluate" / metric.file
    if value is None:
        return {}
    return _by_prompt(read_evidence(path), metric) if path.is_file() else {WHOLE: value}


def reported(report: Mapping[str, Any], name: str) -> float | None:
    """One number of a report; the mean where the report holds an interval, None where it holds nothing."""
    value = report.get(name)
    if isinstance(value, Mapping):
        value = value["mean"]
    return None if value is None else float(value)


def _by_prompt(table: pa.Table, metric: Metric) -> dict[str, float]:
    values = table.column(metric.column).cast(pa.float64())
    if metric is ACCURACY:
        margins = values.to_numpy(zero_copy_only=False)
        # A margin of zero decides nothing: one half.
        values = pa.array(np.where(np.isnan(margins), np.nan, np.heaviside(margins, 0.5)), from_pandas=True)
    rows = pa.table({"prompt": table.column("prompt"), "value": values})
    means = rows.group_by("prompt", use_threads=False).aggregate([("value", "mean")])
    pairs = zip(means.column("prompt").to_pylist(), means.column("value_mean").to_pylist(), strict=True)
    return {prompt: float(mean) for prompt, mean in sorted(pairs) if mean is not None}

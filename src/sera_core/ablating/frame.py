"""An ablation as a function of the library, and its results as a table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sera_core.ablating.jobs import Result
from sera_core.ablating.names import short_axes
from sera_core.ablating.run import How, run_ablation
from sera_core.ablation import Ablation, Arm, locate_ablation, make_ablation, read_ablation, with_seeds
from sera_core.executors import budget_of

# Report fields that are the interval of another field.
_INTERVALS = {"kl_interval": "kl_to_initial"}
# Columns that every table has.
_FIXED = ("arm", "seed", "variant", "error", "out")


def ablate(
    config: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    seeds: int | Sequence[int] | None = None,
    out: Path | str | None = None,
    cache: Path | str | None = None,
    processes: int | None = None,
    executor: str = "local",
    memory: float | None = None,
    cores: int | None = None,
) -> pd.DataFrame:
    """Run an ablation, or what is missing of it, and give its results as a table.

    Args:
        config: a shipped ablation's name, a YAML file, or what stands in one as a mapping.
        overrides: ``key.path=value`` for every arm, as on the command line.
        seeds: how many, or which; None means the ablation's own.
        out: the folder of all runs; ``runs/<name>`` if None.
        cache: where stages are shared between runs; the default cache if None.
        processes: runs at a time; None means 1, or with ``ray`` as many as the cluster has room for. With several, a
            script needs the usual guard ``if __name__ == "__main__":``, as the processes import it.
        executor: ``local`` or ``ray``.
        memory: GB (10^9 bytes) for all runs together.
        cores: cores for all runs together.

    Returns:
        One row per run, seed by seed: ``arm``, ``seed``, ``variant``, a column per axis (called as in ``arm``, or
        ``grid.<axis>`` where another column has that name), every figure of the final iteration's report (with
        ``_low`` and ``_high`` where it has an interval), ``error`` (None where the run ended well) and ``out``, the
        run's folder.

    Raises:
        SeraError: anything the user can act on before the first run; what a run meets stands in its row.
    """
    ablation = _read(config, overrides)
    if seeds is not None:
        ablation = with_seeds(ablation, range(seeds) if isinstance(seeds, int) else seeds)
    folder = Path(out) if out is not None else Path("runs") / ablation.name
    budget = budget_of(executor, processes, cores, memory)
    how = How(cache=None if cache is None else Path(cache), executor=executor, budget=budget)
    return frame_of(ablation, run_ablation(ablation, folder, how))


def _read(config: str | Path | Mapping[str, Any], overrides: Sequence[str]) -> Ablation:
    if isinstance(config, Mapping):
        return make_ablation({"name": "ablation", **config}, Path(), overrides)
    return read_ablation(locate_ablation(str(config)), overrides)


def frame_of(ablation: Ablation, results: Sequence[Result]) -> pd.DataFrame:
    """Results as a table, a row per run; the columns are those that `ablate` names."""
    arms = {arm.name: arm for arm in ablation.arms}
    figures = [_figures(result.report or {}) for result in results]
    axes = _columns(ablation.arms, {*_FIXED, *(name for each in figures for name in each)})
    rows = zip(results, figures, strict=True)
    frame = pd.DataFrame([_row(arms[result.arm], axes, result, found) for result, found in rows])
    last = ["error", "out"]
    frame = frame[[name for name in frame.columns if name not in last] + last]
    for axis in axes.values():
        numbers = pd.to_numeric(frame[axis], errors="coerce")
        # Labels are texts; those of a numeric axis are numbers again.
        frame[axis] = frame[axis] if numbers.isna().any() else numbers
    return frame


def _columns(arms: Sequence[Arm], taken: Collection[str]) -> dict[str, str]:
    """Each axis with its column: its name in arms, or ``grid.<axis>`` where something else is called so."""
    short = short_axes(dict.fromkeys(axis for arm in arms for axis in arm.point))
    return {axis: f"grid.{axis}" if name in taken else name for axis, name in short.items()}


def _row(arm: Arm, axes: Mapping[str, str], result: Result, figures: Mapping[str, Any]) -> dict[str, Any]:
    point = {axes[axis]: label for axis, label in arm.point.items()}
    known = {"arm": arm.name, "seed": result.seed, "variant": arm.variant, **point}
    return {**known, **figures, "error": result.error, "out": result.out}


def _figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a report, flat."""
    found: dict[str, Any] = {}
    for name, value in report.items():
        target = _INTERVALS.get(name, name)
        if isinstance(value, Mapping) and "mean" in value:
            found |= {target: value["mean"], f"{target}_low": value["low"], f"{target}_high": value["high"]}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.setdefault(target, value)
    return found

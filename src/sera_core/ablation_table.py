"""What an ablation found, arm by arm: means over seeds with intervals, and paired differences to a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from scipy import stats

from sera_core.ablate import Result
from sera_core.ablation import Ablation

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over n seeds with Student's interval at `LEVEL`; the ends are None with a single seed."""

    mean: float
    low: float | None
    high: float | None
    n: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of independent values, at least one."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return Estimate(mean, None, None, len(array))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(array) - 1) * stats.sem(array))
    return Estimate(mean, mean - half, mean + half, len(array))


def metric(report: Mapping[str, Any], name: str) -> float | None:
    """One number of a report; the mean where the report holds an interval, None where it holds nothing."""
    value = report.get(name)
    if isinstance(value, Mapping):
        value = value["mean"]
    return None if value is None else float(value)


def over_seeds(results: Sequence[Result], arm: str, name: str) -> dict[int, float]:
    """Seed to value of one metric, for the finished runs of an arm that have it."""
    found = {r.seed: metric(r.report, name) for r in results if r.arm == arm and r.report is not None}
    return {seed: value for seed, value in found.items() if value is not None}


def difference(results: Sequence[Result], arm: str, base: str, name: str) -> Estimate | None:
    """The mean difference of `arm` to `base` over the seeds both have, paired by seed; None without a common seed."""
    ours, theirs = over_seeds(results, arm, name), over_seeds(results, base, name)
    common = sorted(ours.keys() & theirs.keys())
    return estimate([ours[seed] - theirs[seed] for seed in common]) if common else None


def ablation_table(ablation: Ablation, results: Sequence[Result]) -> Table:
    """A row per arm. KL stands beside the win rate; `vs baseline` is the paired difference of win rates."""
    table = Table(title=f"{ablation.name}: {len(ablation.seeds)} seeds", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("arm")
    headings = ["win rate", "KL", "gold", "len", "failed"]
    for heading in [*headings[:1], *(["vs baseline"] if ablation.baseline else []), *headings[1:]]:
        table.add_column(heading, justify="right", no_wrap=True)
    for arm in ablation.arms:
        rows = {name: list(over_seeds(results, arm.name, name).values()) for name in _METRICS}
        cells = [_shown(rows[name], digits) for name, digits in _METRICS.items()]
        base = ablation.baseline.get(arm.name)
        gap = None if base is None else difference(results, arm.name, base, "win_rate_vs_initial")
        versus = [] if not ablation.baseline else ["-" if gap is None else shown(gap, 3, sign="+")]
        failed = sum(result.arm == arm.name and result.error is not None for result in results)
        table.add_row(escape(arm.name), cells[0], *versus, *cells[1:], str(failed or "-"))
    return table


_METRICS = {"win_rate_vs_initial": 3, "kl_to_initial": 2, "gold_reward": 3, "response_length": 1}


def _shown(values: Sequence[float], digits: int) -> str:
    return shown(estimate(values), digits) if values else "-"


def shown(value: Estimate, digits: int, sign: str = "") -> str:
    """``mean [low, high]``, or the mean alone where there is no interval."""
    text = f"{value.mean:{sign}.{digits}f}"
    return text if value.low is None else f"{text} [{value.low:{sign}.{digits}f}, {value.high:{sign}.{digits}f}]"

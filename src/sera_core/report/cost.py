"""What the runs cost: time and tokens by stage, and what sharing stages between runs saved."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sera_core.errors import StoreError
from sera_core.meter import Meter, total
from sera_core.report.blocks import NONE, Section, Text, number, table
from sera_core.report.study import Run, Study

_RECORDS = ("data/stage.json", "iter_*/*/stage.json")


@dataclass(frozen=True, slots=True)
class Spent:
    """One stage of one run: its name, its key, the seconds it took when it was computed, and its log-prob work."""

    name: str
    key: str
    seconds: float
    work: Mapping[str, object]


def stages_of(run: Run) -> tuple[Spent, ...]:
    """Every stage of a run, reused ones too.

    Raises:
        StoreError: a stage's record cannot be read.
    """
    found = [] if run.policy is None else [Spent("policy", *run.policy, {})]
    for file in sorted(file for pattern in _RECORDS for file in run.path.glob(pattern)):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            found.append(Spent(record["stage"], record["key"], float(record["seconds"]), record["work"]))
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(f"{file} cannot be read: {error}. Give the command that wrote it again.") from error
    return tuple(found)


def distinct(stages: Iterable[Spent]) -> tuple[Spent, ...]:
    """Stages by key, each once: what was computed, however many runs used it."""
    return tuple({(stage.name, stage.key): stage for stage in stages}.values())


def saved(stages: Sequence[Spent]) -> float | None:
    """Seconds of all `stages` over seconds of the distinct ones, >= 1; None where no time was measured."""
    once = sum(stage.seconds for stage in distinct(stages))
    return sum(stage.seconds for stage in stages) / once if once else None


def cost(study: Study) -> Section:
    """Time and tokens by stage: of every run for itself, and of what was computed."""
    stages = [stage for run in study.runs for stage in stages_of(run)]
    names = dict.fromkeys(stage.name for stage in stages)
    rows = [_row(name, [stage for stage in stages if stage.name == name]) for name in names]
    rows.append(_row("all", stages))
    columns = (
        "stage",
        "uses",
        "seconds if computed for each",
        "computed",
        "seconds",
        "tokens through models",
        "padding",
    )
    note = (
        "Seconds are those of the computation, also where a run found the result in the cache; what it took from the "
        "store of log-probs is not added. Tokens are those of log-probs, for what was computed; backward passes add "
        "none, and generation counts none."
    )
    ratio = saved(stages)
    shared = (
        "No time was measured."
        if ratio is None
        else f"Run separately, these {len(study.runs)} runs would have taken "
        f"{number(sum(stage.seconds for stage in stages), 0)} s of stages; shared, they took "
        f"{number(sum(stage.seconds for stage in distinct(stages)), 0)} s: {number(ratio, 2)} times less."
    )
    blocks = (table("Stages", columns, rows, note),)
    return Section("cost", "Time and tokens", blocks if len(study.runs) == 1 else (Text(shared), *blocks))


def _row(name: str, stages: Sequence[Spent]) -> tuple[str, ...]:
    once = distinct(stages)
    work: Meter = total(stage.work for stage in once)
    tokens = work.forward_tokens.total()
    return (
        name,
        str(len(stages)),
        number(sum(stage.seconds for stage in stages), 1),
        str(len(once)),
        number(sum(stage.seconds for stage in once), 1),
        f"{tokens:,}" if tokens else NONE,
        f"{1 - work.useful_tokens / tokens:.0%}" if tokens else NONE,
    )

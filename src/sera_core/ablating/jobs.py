"""The runs of an ablation, and what each came to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sera_core.ablation import Ablation, Arm
from sera_core.errors import SeraError
from sera_core.workspace import read_json


@dataclass(frozen=True, slots=True)
class Job:
    """One run of an ablation."""

    arm: Arm
    seed: int
    out: Path

    @property
    def settings(self) -> dict[str, Any]:
        """The arm's settings with the seed, which takes the place of one that a base has."""
        return {**self.arm.settings, "seed": self.seed}


@dataclass(frozen=True, slots=True)
class StageTime:
    """A stage that a run went through: its key, and the seconds it took when it was computed, by whichever run."""

    key: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run: the report of its final iteration and the means of its step metrics, or the `error` it met.

    `stages` maps the place of each stage in the run's folder to its key and time. `seconds` is the time on the clock,
    `own` the part of it in stages that no other run had computed, `peak` the most memory its process had held (bytes);
    None where a run has not been measured.
    """

    arm: str
    seed: int
    out: str
    report: Mapping[str, Any] | None
    steps: Mapping[str, float]
    error: str | None = None
    stages: Mapping[str, StageTime] = field(default_factory=dict)
    seconds: float | None = None
    own: float | None = None
    peak: int | None = None


def jobs_of(ablation: Ablation, out: Path) -> tuple[Job, ...]:
    """All runs of an ablation in `out`, seed by seed, so that an interrupted one has whole seeds."""
    return tuple(Job(arm, seed, out / arm.name / f"seed-{seed}") for seed in ablation.seeds for arm in ablation.arms)


def failed(job: Job, reason: str) -> Result:
    """The result of a run that ended in an error."""
    return Result(job.arm.name, job.seed, str(job.out), None, {}, reason)


def read_result(arm: str, seed: int, out: Path) -> Result:
    """The result of a finished run in `out`: its final iteration, and each step metric's mean over that iteration.

    Raises:
        SeraError: `out` holds no finished run.
    """
    try:
        manifest = read_json(out / "manifest.json")
        iteration = int(manifest["final_iteration"])
        report = read_json(out / f"iter_{iteration}" / "report.json")
        lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError, KeyError) as error:
        raise SeraError(f"{out} holds no finished run ({error}). Run the ablation again to finish it.") from error
    steps = [step for step in map(json.loads, lines) if step["iteration"] == iteration]
    # A metric may be absent from a step, such as one about known flips in a batch without any.
    names = sorted({name for step in steps for name in step} - {"iteration", "step"})
    values = {name: [float(step[name]) for step in steps if name in step] for name in names}
    means = {name: sum(found) / len(found) for name, found in values.items()}
    return Result(arm, seed, str(out), report, means, stages=stages_in(out))


def stages_in(out: Path) -> dict[str, StageTime]:
    """The stages in a run's folder by their place in it, such as ``iter_1/train``."""
    found = sorted([*out.glob("*/stage.json"), *out.glob("iter_*/*/stage.json")])
    records = {file.parent.relative_to(out).as_posix(): read_json(file) for file in found}
    return {where: StageTime(record["key"], float(record["seconds"])) for where, record in records.items()}


def plain(result: Result) -> dict[str, Any]:
    """A result as JSON-able values."""
    return asdict(result)


def from_plain(raw: Mapping[str, Any]) -> Result:
    """The result that `plain` wrote.

    Raises:
        KeyError, TypeError: not one.
    """
    stages = {where: StageTime(**stage) for where, stage in raw["stages"].items()}
    return Result(**{**raw, "stages": stages})

"""Run an ablation: every arm with every seed, one shared cache, a failed run reported and the rest continued."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sera_core.ablation import Ablation, Arm
from sera_core.catalog import load_catalog
from sera_core.errors import ConfigError, SeraError
from sera_core.plan import make_plan
from sera_core.ranks import launched
from sera_core.workspace import default_cache, write_json

Done = Callable[["Result"], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One run of an ablation."""

    arm: Arm
    seed: int
    out: Path

    @property
    def settings(self) -> dict[str, Any]:
        """The arm's settings with the seed."""
        return {**self.arm.settings, "seed": self.seed}


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run: the report of its final iteration and the means of its step metrics, or the `error` it met."""

    arm: str
    seed: int
    out: str
    report: Mapping[str, Any] | None
    steps: Mapping[str, float]
    error: str | None = None


def jobs_of(ablation: Ablation, out: Path) -> tuple[Job, ...]:
    """All runs of an ablation in `out`, seed by seed, so that an interrupted one has whole seeds."""
    return tuple(Job(arm, seed, out / arm.name / f"seed-{seed}") for seed in ablation.seeds for arm in ablation.arms)


def check_arms(ablation: Ablation) -> None:
    """Plan every arm, so that a mistake in one is found before any computes.

    Raises:
        ConfigError: an arm's settings cannot be honoured; names the arm.
    """
    catalog = load_catalog()
    for arm in ablation.arms:
        try:
            make_plan(dict(arm.settings), catalog)
        except SeraError as error:
            raise ConfigError(f"Arm '{arm.name}': {error}") from error


def ablate(
    ablation: Ablation, out: Path, *, cache: Path | None = None, processes: int = 1, done: Done = lambda _: None
) -> tuple[Result, ...]:
    """Run everything that is not finished yet, in `processes` at a time, and write ``results.json`` into `out`.

    Every run shares `cache`: what two runs have in common is computed once. Interrupted, the same call continues; an
    arm or seed that is added later costs only itself. `done` hears of each run as it ends.

    Raises:
        ConfigError: an arm's settings cannot be honoured, or a launcher started several processes; before anything is
            computed.
    """
    if launched():
        raise ConfigError(
            "An ablation starts its own processes, but WORLD_SIZE says that a launcher started several. Start "
            "it without a launcher; --processes says how many runs at a time."
        )
    check_arms(ablation)
    jobs, cache = jobs_of(ablation, out), cache or default_cache()
    out.mkdir(parents=True, exist_ok=True)
    results: dict[tuple[str, int], Result] = {}
    for result in run_all(jobs, partial(_run, cache=cache, processes=processes), processes):
        results[result.arm, result.seed] = result
        done(result)
    ordered = tuple(results[job.arm.name, job.seed] for job in jobs)
    write_json(out / "results.json", [plain(result) for result in ordered])
    return ordered


def run_all(jobs: Sequence[Job], run: Callable[[Job], Result], processes: int) -> Iterator[Result]:
    """The result of `run` for every job, as they end, in `processes` at a time; for several `run` is pickled.

    Where a process dies, its job's result says so, and the others go on.
    """
    if processes == 1:
        yield from map(run, jobs)
        return
    left = iter(jobs)
    slots = [_Slot() for _ in range(min(processes, len(jobs)))]
    running = {slot.start(run, job): (slot, job) for slot, job in zip(slots, left, strict=False)}
    try:
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                slot, job = running.pop(future)
                result = _result_of(future, job)
                following = next(left, None)
                if following is not None:
                    running[slot.start(run, following)] = slot, following
                yield result
    finally:
        for slot in slots:
            slot.close()


def _result_of(future: Future[Result], job: Job) -> Result:
    try:
        return future.result()
    except BrokenProcessPool:
        reason = "its process died, or was killed; the same command continues it"
        return Result(job.arm.name, job.seed, str(job.out), None, {}, reason)


class _Slot:
    """A process that runs one job after the other, and is replaced when it dies.

    An executor of several processes gives up all its jobs, running ones too, when one of them dies.
    """

    def __init__(self) -> None:
        self._pool = _fresh_pool()

    def start(self, run: Callable[[Job], Result], job: Job) -> Future[Result]:
        """Start a job; the one before has ended."""
        try:
            return self._pool.submit(run, job)
        except BrokenProcessPool:
            self.close()
            self._pool = _fresh_pool()
            return self._pool.submit(run, job)

    def close(self) -> None:
        """Wait for the process to end."""
        self._pool.shutdown(cancel_futures=True)


def _fresh_pool() -> ProcessPoolExecutor:
    # Forked processes would share the parent's thread pools, which they must not.
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def _run(job: Job, cache: Path, processes: int) -> Result:
    import torch

    from sera_core.runner import run

    if processes > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    try:
        run(job.settings, out=job.out, cache=cache)
    except SeraError as error:
        return Result(job.arm.name, job.seed, str(job.out), None, {}, str(error))
    return read_result(job.arm.name, job.seed, job.out)


def read_result(arm: str, seed: int, out: Path) -> Result:
    """The result of a finished run in `out`: its final iteration, and each step metric's mean over that iteration."""
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    iteration = int(manifest["final_iteration"])
    report = json.loads((out / f"iter_{iteration}" / "report.json").read_text(encoding="utf-8"))
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [step for step in map(json.loads, lines) if step["iteration"] == iteration]
    # A metric may be absent from a step, such as one about known flips in a batch without any.
    names = sorted({name for step in steps for name in step} - {"iteration", "step"})
    values = {name: [float(step[name]) for step in steps if name in step] for name in names}
    return Result(arm, seed, str(out), report, {name: sum(found) / len(found) for name, found in values.items()})


def plain(result: Result) -> dict[str, Any]:
    """A result as JSON-able values."""
    return {
        "arm": result.arm,
        "seed": result.seed,
        "out": result.out,
        "report": result.report,
        "steps": dict(result.steps),
        "error": result.error,
    }

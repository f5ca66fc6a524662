"""One run of an ablation, in whatever process it is given to."""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sera_core.ablating.finished import keep_result
from sera_core.ablating.jobs import Job, Result, StageTime, failed, read_result
from sera_core.ablating.ledger import Ledger
from sera_core.ablating.stages import POLICY, Foreseen
from sera_core.errors import SeraError
from sera_core.workspace import read_json

Heard = Callable[[], None]
# A killed ablation's processes notice it at once, and need a moment to let go of their runs.
_LET_GO = 15.0


@dataclass(frozen=True, slots=True)
class Task:
    """A job with its key (see `job_key`) and the stages it will go through."""

    job: Job
    key: str
    stages: tuple[Foreseen, ...]


def work(task: Task, *, cache: Path, threads: int | None = None, heard: Heard = lambda: None) -> Result:
    """Run a job to its end, with `threads` (None: as they are), and keep its result beside its folder.

    Whatever the run meets becomes the result's `error`: others go on. `heard` is called as stages begin and end.
    """
    job = task.job
    notes = Notes(task, Ledger(cache), heard)
    began = time.perf_counter()
    try:
        with _own_threads(threads):
            _wait_for(job.out)
            _run(job, cache, notes)
        result = read_result(job.arm.name, job.seed, job.out)
    except SeraError as error:
        return failed(job, str(error))
    except Exception as error:  # noqa: BLE001  # a bug in one arm must not end the others; its trace is kept
        return failed(job, f"{type(error).__name__}: {error} (the trace is in {_trace(job)})")
    finally:
        notes.let_go()
    measured = replace(
        result,
        stages={**notes.policy, **result.stages},
        seconds=round(time.perf_counter() - began, 3),
        own=round(notes.computed, 3),
        peak=peak_memory(),
    )
    keep_result(job, task.key, measured)
    _trace_of(job).unlink(missing_ok=True)
    return measured


def set_heap_aside() -> None:
    """Take what this process holds out of the garbage collector's sight; for processes that do nothing but runs.

    Trainers collect garbage twice each. Going through all imported modules takes half a second every time.
    """
    gc.collect()
    gc.freeze()


class Notes:
    """A reporter that writes what stages took into the ledger, and lets one process at a time make a policy."""

    def __init__(self, task: Task, ledger: Ledger, heard: Heard) -> None:
        self._out, self._ledger, self._heard = task.job.out, ledger, heard
        self._foreseen = {stage.where: stage for stage in task.stages}
        self._claim: FileLock | None = None
        self._claims = ledger.claims
        self.computed = 0.0
        self.policy: dict[str, StageTime] = {}

    def stage_started(self, where: str) -> Callable[[int, int], None]:
        """Waits while another process makes the same initial policy; every other stage waits by itself."""
        self.let_go()
        stage = self._foreseen.get(where)
        if where == POLICY and stage is not None:
            self._claims.mkdir(parents=True, exist_ok=True)
            self._claim = FileLock(self._claims / f"{POLICY}-{stage.signature}")
            self._claim.acquire()
        self._heard()
        return lambda _done, _total: None

    def stage_finished(self, where: str, seconds: float, reused: bool) -> None:
        """Notes the stage."""
        if not reused:
            self.computed += seconds
        stage = self._foreseen.get(where)
        if stage is not None:
            key = stage.signature if where == POLICY else str(read_json(self._out / where / "stage.json")["key"])
            self._ledger.note(stage, key, seconds, reused=reused)
            if where == POLICY:
                self.policy = {POLICY: StageTime(key, round(self._ledger.seconds(stage) or seconds, 3))}
        # Whoever waits for the policy is to find the note.
        self.let_go()
        self._heard()

    def iteration_finished(self, values: Mapping[str, Any]) -> None:
        """Says nothing."""

    def let_go(self) -> None:
        """Give up the claim on the initial policy, if there is one."""
        if self._claim is not None:
            self._claim.release()
            self._claim = None


def peak_memory() -> int | None:
    """The most memory this process has held, in bytes; None where the system does not say."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _run(job: Job, cache: Path, notes: Notes) -> None:
    from sera_core.runner import run

    run(job.settings, out=job.out, cache=cache, reporter=notes)


@contextmanager
def _own_threads(threads: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _wait_for(out: Path) -> None:
    """Wait a moment while a killed process lets go of the run; one that stays is reported by the run itself."""
    if (out / ".lock").exists():
        lock = FileLock(out / ".lock")
        try:
            lock.acquire(timeout=_LET_GO)
        except Timeout:
            return
        lock.release()


def _trace_of(job: Job) -> Path:
    return job.out.with_name(f"{job.out.name}.error.txt")


def _trace(job: Job) -> Path:
    path = _trace_of(job)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(traceback.format_exc(), encoding="utf-8")
    return path

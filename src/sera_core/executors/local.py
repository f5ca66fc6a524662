"""Runs on this machine: one after the other in this process, or in several."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection

from sera_core.ablating.jobs import Result, failed
from sera_core.ablating.work import Task, set_heap_aside
from sera_core.executors.budget import Budget
from sera_core.executors.devices import VISIBLE, Shares

_DIED = "its process died, or was killed; the same command continues it"


class InProcess:
    """One run after the other, in this process."""

    def __init__(self, work: Callable[..., Result], budget: Budget, heard: Callable[[], None]) -> None:
        self._work, self._budget, self._heard = work, budget, heard
        self._next: Task | None = None

    def room(self, task: Task) -> bool:  # noqa: ARG002
        """Whether nothing waits."""
        return self._next is None

    def start(self, task: Task) -> None:
        """Take a task; `ended` makes it."""
        self._next = task

    def ended(self, timeout: float) -> list[tuple[Task, Result]]:  # noqa: ARG002
        """Make the task, however long it takes."""
        task, self._next = self._next, None
        if task is None:
            return []
        return [(task, self._work(task, threads=self._budget.threads(task), heard=self._heard))]

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class _Process:
    """A process, and the devices that it sees; ``()`` means all."""

    pool: ProcessPoolExecutor
    devices: tuple[str, ...]


class Processes:
    """Runs in processes of their own, one after the other in each; one that dies takes no other with it.

    An executor of several processes gives up all its tasks, running ones too, when one of them dies, so each of these
    has one process.
    """

    def __init__(self, work: Callable[..., Result], budget: Budget) -> None:
        self._work, self._budget = work, budget
        self._idle: list[_Process] = []
        self._running: dict[Future[Result], tuple[Task, _Process]] = {}
        self._devices: Shares | None = None

    def room(self, task: Task) -> bool:
        """Whether the task fits beside those that run."""
        fits = self._budget.fits(task, (running for running, _ in self._running.values()))
        return fits and (not self._running or self._place(task) is not None)

    def start(self, task: Task) -> None:
        """Start a task in an idle process, or a fresh one, which sees the task's devices alone if it asks for any."""
        devices = self._place(task) or ()
        process = self._process(devices)
        try:
            future = process.pool.submit(_alone, self._work, task, self._budget.threads(task))
        except BrokenProcessPool:
            process.pool.shutdown()
            process = _fresh(devices)
            future = process.pool.submit(_alone, self._work, task, self._budget.threads(task))
        self._hold(process, task.job.arm.resources.gpus)
        self._running[future] = task, process

    def _place(self, task: Task) -> tuple[str, ...] | None:
        """The devices that are free for a task, ``()`` if it asks for none; None if there are too few."""
        count = task.job.arm.resources.gpus
        if count and self._devices is None:
            self._devices = Shares(self._budget.all_devices)
        return self._devices.place(count) if self._devices is not None else ()

    def _process(self, devices: tuple[str, ...]) -> _Process:
        """An idle process that sees these devices, else a fresh one in the place of an idle one."""
        fitting = [process for process in self._idle if process.devices == devices]
        for process in (fitting or self._idle)[:1]:
            self._idle.remove(process)
            if fitting:
                return process
            # What a process sees of devices stays for its life.
            process.pool.shutdown()
        return _fresh(devices)

    def _hold(self, process: _Process, count: float) -> None:
        if self._devices is not None:
            self._devices.take(process.devices, count)

    def ended(self, timeout: float) -> list[tuple[Task, Result]]:
        """The tasks that have ended, in no order; a process that died ends its task with an error."""
        done = wait(self._running, timeout=timeout, return_when=FIRST_COMPLETED).done
        return [self._end(future) for future in done]

    def _end(self, future: Future[Result]) -> tuple[Task, Result]:
        task, process = self._running.pop(future)
        self._hold(process, -task.job.arm.resources.gpus)
        try:
            result = future.result()
        except BrokenProcessPool:
            process.pool.shutdown()
            return task, failed(task.job, _DIED)
        self._idle.append(process)
        return task, result

    def close(self) -> None:
        """Stop what runs, and end the processes."""
        running = [process for _, process in self._running.values()]
        for process in running:
            _terminate(process.pool)
        for process in [*self._idle, *running]:
            process.pool.shutdown(cancel_futures=True)


def _alone(work: Callable[..., Result], task: Task, threads: int | None) -> Result:
    set_heap_aside()
    return work(task, threads=threads)


def _fresh(devices: tuple[str, ...]) -> _Process:
    # Forked processes would share the parent's thread pools, which they must not.
    context = multiprocessing.get_context("spawn")
    return _Process(ProcessPoolExecutor(1, context, initializer=_begin, initargs=(devices,)), devices)


def _begin(devices: tuple[str, ...]) -> None:
    """Make a fresh process see some devices alone, all if none are named, and end with its parent."""
    if devices:
        # Read when the process first asks for a device, which is later.
        os.environ[VISIBLE] = ",".join(devices)
    _end_with_parent()


def _terminate(pool: ProcessPoolExecutor) -> None:
    # Public from Python 3.14 on, as `terminate_workers`.
    for process in list((pool._processes or {}).values()):
        process.terminate()


def _end_with_parent() -> None:
    """End this process when its parent dies: it would go on to hold the run that the same command is to continue."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

"""Runs on this machine: one after the other in this process, or in several."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection

from sera_core.ablating.jobs import Result, failed
from sera_core.ablating.work import Task, set_heap_aside
from sera_core.executors.budget import Budget

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


class Processes:
    """Runs in processes of their own, one after the other in each; one that dies takes no other with it.

    An executor of several processes gives up all its tasks, running ones too, when one of them dies, so each of these
    has one process.
    """

    def __init__(self, work: Callable[..., Result], budget: Budget) -> None:
        self._work, self._budget = work, budget
        self._idle: list[ProcessPoolExecutor] = []
        self._running: dict[Future[Result], tuple[Task, ProcessPoolExecutor]] = {}

    def room(self, task: Task) -> bool:
        """Whether the task fits beside those that run."""
        return self._budget.fits(task, (running for running, _ in self._running.values()))

    def start(self, task: Task) -> None:
        """Start a task in an idle process, or a fresh one."""
        pool = self._idle.pop() if self._idle else _fresh()
        try:
            future = pool.submit(_alone, self._work, task, self._budget.threads(task))
        except BrokenProcessPool:
            pool.shutdown()
            pool = _fresh()
            future = pool.submit(_alone, self._work, task, self._budget.threads(task))
        self._running[future] = task, pool

    def ended(self, timeout: float) -> list[tuple[Task, Result]]:
        """The tasks that have ended, in no order; a process that died ends its task with an error."""
        done = wait(self._running, timeout=timeout, return_when=FIRST_COMPLETED).done
        return [self._end(future) for future in done]

    def _end(self, future: Future[Result]) -> tuple[Task, Result]:
        task, pool = self._running.pop(future)
        try:
            result = future.result()
        except BrokenProcessPool:
            pool.shutdown()
            return task, failed(task.job, _DIED)
        self._idle.append(pool)
        return task, result

    def close(self) -> None:
        """Stop what runs, and end the processes."""
        for pool in [*self._idle, *(pool for _, pool in self._running.values())]:
            if any(pool is held for _, held in self._running.values()):
                _terminate(pool)
            pool.shutdown(cancel_futures=True)


def _alone(work: Callable[..., Result], task: Task, threads: int | None) -> Result:
    set_heap_aside()
    return work(task, threads=threads)


def _fresh() -> ProcessPoolExecutor:
    # Forked processes would share the parent's thread pools, which they must not.
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_end_with_parent)


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

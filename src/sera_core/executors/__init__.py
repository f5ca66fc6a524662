"""Where the runs of an ablation are made: in this process, in several of this machine, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sera_core.ablating.jobs import Result
from sera_core.ablating.work import Task
from sera_core.errors import ConfigError, suggest
from sera_core.executors.budget import GB, Budget

NAMES = ("local", "ray")
Work = Callable[..., Result]


class Executor(Protocol):
    """Makes runs, some at a time. `start` is only called while there is `room`; every task that was started ends once.

    A worker that dies ends its task with an error, or is replaced by one that takes the task up again.
    """

    def room(self, task: Task) -> bool:
        """Whether the task could start now; always, where nothing runs."""

    def start(self, task: Task) -> None:
        """Start a task."""

    def ended(self, timeout: float) -> list[tuple[Task, Result]]:
        """The tasks that have ended since the last call; waits for one, at most `timeout` seconds."""

    def close(self) -> None:
        """Let go of everything; tasks that still run are stopped."""


def check_executor(name: str) -> None:
    """Refuse the name of no executor, with ConfigError."""
    if name not in NAMES:
        raise ConfigError(f"There is no executor '{name}'. {suggest(name, NAMES)}")


def budget_of(name: str, processes: int | None, cores: int | None, gigabytes: float | None) -> Budget:
    """The budget that a user asked for; of processes on this machine there is one unless told otherwise.

    Raises:
        ConfigError: one of the numbers is not positive.
    """
    at_a_time = 1 if processes is None and name == "local" else processes
    return Budget(at_a_time, cores, None if gigabytes is None else gigabytes * GB, here=name == "local")


def make_executor(name: str, work: Work, budget: Budget, heard: Callable[[], None]) -> Executor:
    """The executor called `name`, which calls ``work(task, threads=...)`` for each task it is given.

    `heard` is called while a task runs, where it runs in this process.

    Raises:
        ConfigError: no such executor, or what it needs is not installed.
    """
    check_executor(name)
    if name == "ray":
        from sera_core.executors.cluster import RayExecutor

        return RayExecutor(work, budget)
    from sera_core.executors.local import InProcess, Processes

    return InProcess(work, budget, heard) if budget.processes == 1 else Processes(work, budget)

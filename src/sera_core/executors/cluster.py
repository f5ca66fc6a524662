"""Runs on a Ray cluster: this machine's own, or the one that RAY_ADDRESS names."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sera_core.ablating.jobs import Result, failed
from sera_core.ablating.work import Task, set_heap_aside
from sera_core.errors import ConfigError
from sera_core.executors.budget import Budget

# A worker that dies is replaced so many times before its run counts as failed.
RETRIES = 2
_NAMES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}


class RayExecutor:
    """Runs as Ray tasks that ask for their arm's cores, memory and devices.

    Every machine of the cluster must see the ablation's folder and cache under the same path. A task whose worker dies
    is started again elsewhere, and continues the run from the stages and checkpoints that are on disk.
    """

    def __init__(self, work: Callable[..., Result], budget: Budget) -> None:
        """Join the cluster, or start one on this machine with the budget's cores and memory.

        Raises:
            ConfigError: Ray is not installed, or the cluster of RAY_ADDRESS cannot be reached.
        """
        self._ray = _ray()
        self._budget = budget
        self._own = not self._ray.is_initialized()
        if self._own:
            self._join()
        self._remote, self._work = self._ray.remote(_there), work
        self._running: dict[Any, Task] = {}
        self._refused: list[tuple[Task, Result]] = []

    def _join(self) -> None:
        address = os.environ.get("RAY_ADDRESS")
        known: dict[str, Any] = {"address": address} if address else {"address": "local", **self._machine()}
        try:
            self._ray.init(log_to_driver=False, logging_level=logging.ERROR, **known)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"The Ray cluster cannot be joined ({error}). Check RAY_ADDRESS.") from error

    def _machine(self) -> dict[str, Any]:
        memory = {} if self._budget.memory is None else {"_memory": self._budget.memory}
        return {"num_cpus": self._budget.all_cores, "include_dashboard": False, **memory}

    def room(self, task: Task) -> bool:
        """Whether the budget and the cluster have what the arm asks for; always where nothing runs."""
        if not self._running:
            return True
        if self._budget.processes is not None and len(self._running) >= self._budget.processes:
            return False
        # What the cluster itself calls free does not know yet of tasks that were just submitted.
        return not self._lacking([task, *self._running.values()])

    def _lacking(self, tasks: list[Task]) -> list[str]:
        """What there is too little of to run the tasks beside each other, such as ``8 CPU of 2``."""
        there = self._there()
        asked = {name: sum(self._wanted(task).get(key, 0.0) for task in tasks) for key, name in _NAMES.items()}
        return [
            f"{value:g} {name} of {there.get(name, 0):g}" for name, value in asked.items() if value > there.get(name, 0)
        ]

    def _there(self) -> dict[str, float]:
        """What all runs may take together: what the cluster has, or less where the budget says so."""
        there = dict(self._ray.cluster_resources())
        # A cluster that was joined has more than this ablation may take.
        limits = {"CPU": self._budget.cores, "memory": self._budget.memory}
        return there | {name: min(limit, there.get(name, limit)) for name, limit in limits.items() if limit is not None}

    def start(self, task: Task) -> None:
        """Submit a task; one that asks this machine for more than it has ends at once."""
        lacking = self._lacking([task]) if self._own else []
        if lacking:
            self._refused.append(
                (task, failed(task.job, f"the arm's resources ask for {', '.join(lacking)}; lower them"))
            )
            return
        options = self._remote.options(max_retries=RETRIES, **self._wanted(task))
        future = options.remote(self._work, str(Path.cwd()), task, self._budget.threads(task) or 1)
        self._running[future] = task

    def _wanted(self, task: Task) -> dict[str, float]:
        own = task.job.arm.resources
        wanted: dict[str, float] = {"num_cpus": self._budget.threads(task) or 1, "num_gpus": own.gpus}
        # Memory is only booked where somebody set a limit: a cluster may not know how much it has.
        if own.memory is not None or self._budget.memory is not None:
            wanted["memory"] = self._budget.bytes(task)
        return {key: value for key, value in wanted.items() if value}

    def ended(self, timeout: float) -> list[tuple[Task, Result]]:
        """The tasks that have ended; a worker that died more often than `RETRIES` ends its task with an error."""
        refused, self._refused = self._refused, []
        if refused or not self._running:
            return refused
        done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout)
        return [self._end(future) for future in done]

    def _end(self, future: Any) -> tuple[Task, Result]:  # noqa: ANN401 (an ObjectRef)
        task = self._running.pop(future)
        try:
            result: Result = self._ray.get(future)
        except self._ray.exceptions.RayError as error:
            first = str(error).strip().partition("\n")[0]
            reason = f"its worker died {RETRIES + 1} times, or could not start ({first}); the same command continues it"
            return task, failed(task.job, reason)
        return task, result

    def close(self) -> None:
        """Stop what runs, and the cluster if it was started here."""
        for future in self._running:
            self._ray.cancel(future, force=True)
        if self._own:
            self._ray.shutdown()


def _ray() -> Any:  # noqa: ANN401 (a module that may be missing)
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(
            "The executor 'ray' needs Ray, which is not installed. Run: pip install 'sera-core[ray]'."
        ) from error


def _there(work: Callable[..., Result], folder: str, task: Task, threads: int) -> Result:
    """Work in the folder of the command, which relative paths in settings start from."""
    if Path(folder).is_dir():
        os.chdir(folder)
    set_heap_aside()
    return work(task, threads=threads)

"""The whole grid of an ablation: the stages to come, which of them runs share, what is done, how long it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sera_core.ablating.jobs import Result
from sera_core.ablating.ledger import Ledger
from sera_core.ablating.work import Task


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is to be done.

    runs and finished count runs; stages counts those of all runs, distinct what is left of them when shared ones count
    once, shared the distinct ones that several runs have, cached the distinct ones that need no computing any more.
    seconds is the estimate for what is left, over the runs at a time; None before enough has been timed.
    """

    runs: int
    finished: int
    stages: int
    distinct: int
    shared: int
    cached: int
    at_a_time: int
    seconds: float | None

    def plain(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {name: getattr(self, name) for name in self.__slots__}


class Grid:
    """Follows an ablation's tasks: what is done, what runs, what is left."""

    def __init__(self, tasks: Sequence[Task], ledger: Ledger, at_a_time: int = 1) -> None:
        """`at_a_time` is how many runs are made beside each other."""
        self.tasks, self.at_a_time, self._ledger = tuple(tasks), at_a_time, ledger
        self._times = Counter(stage.signature for task in tasks for stage in task.stages)
        self._stages = {stage.signature: stage for task in tasks for stage in task.stages}
        self._left = {name: stage for name, stage in self._stages.items() if not ledger.known(stage)}
        self._running: dict[int, Task] = {}
        self._ended: dict[int, Result] = {}
        self._beside: list[float] = []

    def outlook(self) -> Outlook:
        """What is to be done now."""
        return Outlook(
            runs=len(self.tasks),
            finished=sum(result.error is None for result in self._ended.values()),
            stages=sum(self._times.values()),
            distinct=len(self._stages),
            shared=sum(count > 1 for count in self._times.values()),
            cached=len(self._stages) - len(self._left),
            at_a_time=self.at_a_time,
            seconds=self.seconds_left(),
        )

    def started(self, task: Task) -> None:
        """A task runs."""
        self._running[id(task)] = task

    def ended(self, task: Task, result: Result, *, kept: bool = False) -> None:
        """A task has ended; `kept` where its result was there already."""
        self._running.pop(id(task), None)
        self._ended[id(task)] = result
        if result.error is None:
            # A loop that stopped early leaves stages that nobody will compute.
            for stage in task.stages:
                self._left.pop(stage.signature, None)
        else:
            self._forget_failed()
        if not kept and result.seconds is not None and result.own is not None:
            self._beside.append(max(0.0, result.seconds - result.own))

    def _forget_failed(self) -> None:
        """Stages that only failed runs would have made are no longer to come."""
        wanted = {s.signature for task in self.tasks if id(task) not in self._ended for s in task.stages}
        self._left = {name: stage for name, stage in self._left.items() if name in wanted}

    def look(self) -> None:
        """Note the stages that running tasks have finished since."""
        for task in self._running.values():
            for stage in task.stages:
                if stage.signature in self._left and self._ledger.known(stage):
                    del self._left[stage.signature]

    def __len__(self) -> int:
        """Distinct stages."""
        return len(self._stages)

    def to_compute(self, signatures: Iterable[str]) -> int:
        """How many of the stages are left to compute."""
        return sum(signature in self._left for signature in signatures)

    @property
    def done(self) -> int:
        """Distinct stages that need no computing any more."""
        return len(self._stages) - len(self._left)

    def best(self, waiting: Sequence[Task]) -> Task:
        """The task to start next: one that would not compute what a running one computes, of a seed that none has.

        Where all of them would, the first: it waits for the shared stages, then reuses them.
        """
        busy = {s.signature for task in self._running.values() for s in task.stages if s.signature in self._left}
        seeds = {task.job.seed for task in self._running.values()}

        def rank(task: Task) -> tuple[bool, bool]:
            return any(stage.signature in busy for stage in task.stages), task.job.seed in seeds

        return min(waiting, key=rank)

    def seconds_left(self) -> float | None:
        """The time that is left on the clock, by what stages of the same kind or sort took; None before it is known."""
        # Stages of one kind differ in their seed alone, and take as long.
        kinds = {stage.kind: stage for stage in self._left.values()}
        times = {kind: self._ledger.expected(stage) for kind, stage in kinds.items()}
        expected = [times[stage.kind] for stage in self._left.values()]
        known = [seconds for seconds in expected if seconds is not None]
        if len(known) < len(expected) and not self._beside:
            return None
        mean = sum(known) / len(known) if known else 0.0
        beside = sum(self._beside) / len(self._beside) if self._beside else 0.0
        runs = len(self.tasks) - len(self._ended)
        total = sum(known) + mean * (len(expected) - len(known)) + beside * runs
        return total / max(1, min(self.at_a_time, runs))


def sharing(results: Iterable[Result]) -> Mapping[str, float | int]:
    """Measured stage time of finished runs: `separately` counts every stage of every run, `together` each key once.

    Both in seconds, with the numbers of stages behind them; the initial policy counts as a stage of each run.
    """
    times = [time for result in results for time in result.stages.values()]
    once = {time.key: time.seconds for time in times}
    return {
        "stages": len(times),
        "distinct": len(once),
        "separately": round(sum(time.seconds for time in times), 3),
        "together": round(sum(once.values()), 3),
    }

"""Run an ablation: every arm with every seed, one shared cache, a failed run reported and the rest continued."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sera_core.ablating.book import Book, alone_in, described
from sera_core.ablating.finished import job_key, kept_result
from sera_core.ablating.foresee import foresee
from sera_core.ablating.grid import Grid
from sera_core.ablating.jobs import Job, Result, jobs_of
from sera_core.ablating.ledger import Ledger
from sera_core.ablating.work import Task, work
from sera_core.ablation import Ablation
from sera_core.catalog import load_catalog
from sera_core.errors import ConfigError, SeraError
from sera_core.executors import Executor, make_executor
from sera_core.executors.budget import Budget
from sera_core.plan import Plan, make_plan
from sera_core.ranks import launched
from sera_core.workspace import default_cache, disk_refusals, write_json

# Seconds between two looks at what running processes have done.
_LOOK = 0.5


class Watcher:
    """Told how an ablation goes; the default says nothing."""

    def planned(self, grid: Grid) -> None:
        """Nothing has been computed yet."""

    def looked(self, grid: Grid) -> None:
        """Some time has passed, or a stage has ended."""

    def ended(self, result: Result) -> None:
        """A run has ended, or was found finished."""


@dataclass(frozen=True, slots=True)
class How:
    """How runs are made.

    `cache` None means the default one. `verify` opens finished runs too, which compares every file with its checksum.
    """

    cache: Path | None = None
    executor: str = "local"
    budget: Budget = field(default_factory=Budget)
    verify: bool = False

    @property
    def place(self) -> Path:
        """The cache."""
        return (self.cache or default_cache()).resolve()


def check_arms(ablation: Ablation) -> dict[str, Plan]:
    """The plan of every arm by its name, so that a mistake in one is found before any computes.

    Raises:
        ConfigError: an arm's settings cannot be honoured; names the arm.
    """
    catalog, plans = load_catalog(), {}
    for arm in ablation.arms:
        try:
            plans[arm.name] = make_plan(dict(arm.settings), catalog)
        except SeraError as error:
            raise ConfigError(f"Arm '{arm.name}': {error}") from error
    return plans


def tasks_of(ablation: Ablation, out: Path) -> tuple[Task, ...]:
    """All runs with the stages they will go through; every arm is planned.

    Raises:
        ConfigError: an arm's settings cannot be honoured; names the arm.
    """
    plans = check_arms(ablation)
    return tuple(_task(job, plans[job.arm.name]) for job in jobs_of(ablation, out.resolve()))


def _task(job: Job, plan: Plan) -> Task:
    return Task(job, job_key(job, plan.provenance), foresee(plan, job.seed))


def grid_of(ablation: Ablation, out: Path, how: How) -> tuple[Grid, dict[int, Result]]:
    """The grid before anything is computed, and the results that are there already by the number of their task."""
    for arm in ablation.arms:
        how.budget.check(arm)
    tasks = tasks_of(ablation, out)
    grid = Grid(tasks, Ledger(how.place), how.budget.at_a_time(tasks))
    kept = {} if how.verify else {n: r for n, task in enumerate(tasks) if (r := kept_result(task.job, task.key))}
    for number, result in kept.items():
        grid.ended(tasks[number], result, kept=True)
    return grid, kept


def run_ablation(ablation: Ablation, out: Path, how: How | None = None, watcher: Watcher | None = None) -> list[Result]:
    """Run everything that is not finished yet, and write ``ablation.json`` and ``results.json`` into `out`.

    Every run shares the cache: what two runs have in common is computed once, also where they run at the same time.
    Interrupted at any moment, the same call continues; an arm or seed that is added later costs only itself. The result
    of a run is written as it ends.

    Raises:
        ConfigError: an arm's settings or the executor cannot be honoured, or a launcher started several processes;
            before anything is computed.
        StoreError: another ablation is running in `out`, or the disk refuses its files.
    """
    how, watcher = how or How(), watcher or Watcher()
    if launched():
        raise ConfigError(
            "An ablation starts its own processes, but WORLD_SIZE says that a launcher started several. Start "
            "it without a launcher; --processes says how many runs at a time."
        )
    grid, kept = grid_of(ablation, out, how)
    executor = make_executor(how.executor, partial(work, cache=how.place), how.budget, partial(_look, grid, watcher))
    try:
        with disk_refusals("The ablation", out), alone_in(out):
            write_json(out / "ablation.json", described(ablation))
            watcher.planned(grid)
            book = Book(out, len(grid.tasks))
            for number, result in kept.items():
                how.budget.peak = max(how.budget.peak, result.peak or 0)
                book.note(number, result)
                watcher.ended(result)
            _go(grid, executor, book, watcher, how.budget)
            book.write()
    finally:
        executor.close()
    return list(book.results())


def _look(grid: Grid, watcher: Watcher) -> None:
    grid.look()
    watcher.looked(grid)


def _go(grid: Grid, executor: Executor, book: Book, watcher: Watcher, budget: Budget) -> None:
    """Start and await every task that has no result yet."""
    numbers = {id(task): number for number, task in enumerate(grid.tasks)}
    waiting = [task for number, task in enumerate(grid.tasks) if not book.has(number)]
    running = 0
    while waiting or running:
        while waiting and executor.room(task := grid.best(waiting)):
            waiting.remove(task)
            grid.started(task)
            executor.start(task)
            running += 1
        for task, result in executor.ended(_LOOK):
            running -= 1
            budget.peak = max(budget.peak, result.peak or 0)
            grid.ended(task, result)
            book.note(numbers[id(task)], result)
            watcher.ended(result)
        _look(grid, watcher)

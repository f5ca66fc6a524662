"""What people see of an ablation: its plan, its progress over the whole grid, what sharing saved."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sera_core.ablating.grid import Grid, Outlook, sharing
from sera_core.ablating.jobs import Result
from sera_core.ablating.run import Watcher
from sera_core.ablation import Ablation

# Seconds between two estimates of what is left; each looks at everything that is left.
_ESTIMATE = 5.0
# Seconds between two lines of progress where there is no terminal to draw a bar in: a log file, a batch system.
_LINE = 60.0


class Screen(Watcher):
    """Prints the plan, then shows progress by stages and runs with the time that is left. Use as a context manager."""

    def __init__(self, console: Console, ablation: Ablation) -> None:
        self._console, self._ablation = console, ablation
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("stages,"),
        )
        self._progress = Progress(
            *columns,
            TextColumn("{task.fields[runs]} runs"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
        )
        self._bar = self._progress.add_task(ablation.name, total=None, runs="", left="")
        self._next, self._said, self._ended = 0.0, False, 0
        self._next_line = time.monotonic() + _LINE

    def __enter__(self) -> Screen:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def planned(self, grid: Grid) -> None:
        """Prints the plan."""
        outlook = grid.outlook()
        self._said = outlook.seconds is not None
        title = f"{self._ablation.name}: {len(self._ablation.arms)} arms x {len(self._ablation.seeds)} seeds"
        self._console.print(escape(title), highlight=False, style="bold")
        for line in outlook_lines(outlook):
            self._console.print(line, highlight=False)

    def looked(self, grid: Grid) -> None:
        """Moves the bar, or prints a line where none is drawn, and estimates anew from time to time."""
        runs = f"{self._ended}/{len(grid.tasks)}"
        self._progress.update(self._bar, total=len(grid), completed=grid.done, runs=runs)
        if time.monotonic() < self._next:
            return
        left = grid.seconds_left()
        self._next = time.monotonic() + _ESTIMATE
        if left is None:
            return
        self._progress.update(self._bar, left=f"about {duration(left)} left")
        if not self._said:
            self._said = True
            self._console.print(f"  timed: about {duration(left)} for what is left", highlight=False)
        if not self._console.is_terminal and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE
            line = f"  {grid.done}/{len(grid)} stages, {runs} runs, about {duration(left)} left"
            self._console.print(line, highlight=False)

    def ended(self, result: Result) -> None:
        """Counts the run; says why it failed if it did."""
        self._ended += 1
        if result.error is not None:
            self._console.print(f"[red]✗[/red] {escape(f'{result.arm}, seed {result.seed}: {result.error}')}")


def outlook_lines(outlook: Outlook) -> list[str]:
    """What is to be done, in words."""
    runs = f"{outlook.runs} runs, {outlook.finished} of them finished; {outlook.at_a_time} at a time"
    left = outlook.distinct - outlook.cached
    stages = (
        f"{outlook.stages} stages, {outlook.distinct} of them distinct ({outlook.shared} shared by several runs); "
        f"{outlook.cached} done, {left} to compute"
    )
    if not left and outlook.finished == outlook.runs:
        return [f"  {runs}", f"  {stages}"]
    known = outlook.seconds is not None
    took = (
        f"about {duration(outlook.seconds or 0)}" if known else "known as soon as stages of each sort have been timed"
    )
    return [f"  {runs}", f"  {stages}", f"  time: {took}"]


def plan_rows(grid: Grid, kept: Mapping[int, Result]) -> list[dict[str, Any]]:
    """A row per run in its order: arm, seed, folder, whether finished, its stages, those no run before it makes."""
    seen: set[str] = set()
    rows = []
    for number, task in enumerate(grid.tasks):
        names = {stage.signature for stage in task.stages}
        new = grid.to_compute(names - seen)
        seen |= names
        found = {"arm": task.job.arm.name, "seed": task.job.seed, "out": str(task.job.out), "finished": number in kept}
        rows.append({**found, "stages": len(names), "new": new})
    return rows


def plan_table(ablation: Ablation, rows: Iterable[Mapping[str, Any]]) -> Table:
    """A row per arm: its runs, those finished, its stages over all seeds, those left that no arm before it makes."""
    table = Table(title=f"{ablation.name}: {len(ablation.seeds)} seeds", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("arm")
    for heading in ("runs", "finished", "stages", "to compute"):
        table.add_column(heading, justify="right", no_wrap=True)
    totals = {arm.name: [0, 0, 0, 0] for arm in ablation.arms}
    for row in rows:
        for place, value in enumerate((1, int(row["finished"]), row["stages"], row["new"])):
            totals[row["arm"]][place] += value
    for name, cells in totals.items():
        table.add_row(escape(name), *map(str, cells))
    return table


def sharing_line(results: Iterable[Result]) -> str:
    """What the stages took together, and what they would have taken had every run made its own."""
    found = sharing(results)
    together, separately = found["together"], found["separately"]
    times = f" ({separately / together:.1f} times)" if together else ""
    return (
        f"Stage time: {duration(together)} for {found['distinct']} stages; {duration(separately)}{times} "
        f"for {found['stages']}, had each run made its own."
    )


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

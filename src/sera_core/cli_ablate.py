"""The command `sera ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from sera_core.ablating.jobs import Result
    from sera_core.ablating.run import How
    from sera_core.ablation import Ablation

FAILED = 1
# What shells use for a program stopped by Ctrl-C.
_INTERRUPTED = 130


def ablate(
    config: Annotated[str, typer.Argument(help="A shipped ablation's name or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For every arm, such as source=pairs.jsonl.")
    ] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="How many, such as 3, or which, such as 0,1,2.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The folder of all runs (default: runs/<name>).")] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Shared cache (default: SERA_CACHE or the user cache).")
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Runs at a time (default: 1; with ray, what has room).")
    ] = None,
    executor: Annotated[str, typer.Option("--executor", help="local or ray.")] = "local",
    memory: Annotated[float | None, typer.Option("--memory", min=0, help="GB for all runs together.")] = None,
    cores: Annotated[int | None, typer.Option("--cores", min=1, help="Cores for all runs together.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs, nothing else.")] = False,
    plan_only: Annotated[bool, typer.Option("--plan", help="Check every arm, show the plan, compute nothing.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Open finished runs too: compare all checksums.")] = False,
) -> None:
    """Compare variants over seeds. Interrupted or extended, the same command computes only what is missing."""
    from sera_core.ablating.run import How
    from sera_core.ablation import locate_ablation, read_ablation, read_seeds, with_seeds
    from sera_core.executors import budget_of

    ablation = read_ablation(locate_ablation(config), overrides or [])
    if seeds is not None:
        ablation = with_seeds(ablation, read_seeds(seeds))
    folder = out or Path("runs") / ablation.name
    budget = budget_of(executor, processes, cores, memory)
    how = How(cache=cache, executor=executor, budget=budget, verify=verify)
    if plan_only:
        _show_plan(ablation, folder, how, as_json)
        return
    console = Console(stderr=as_json)
    try:
        results = watched(ablation, folder, how, console)
    except KeyboardInterrupt:
        # Typer would make it an abort with exit code 1.
        console.print("Interrupted. Run the same command again to continue.")
        raise typer.Exit(_INTERRUPTED) from None
    _show_results(ablation, folder, results, console, as_json)
    if any(result.error is not None for result in results):
        raise typer.Exit(FAILED)


def watched(ablation: Ablation, folder: Path, how: How, console: Console) -> list[Result]:
    """Run an ablation with its plan and its progress on the console, naming each run that fails."""
    from sera_core.ablating.run import run_ablation
    from sera_core.ablating.screen import Screen

    with Screen(console, ablation) as screen:
        return run_ablation(ablation, folder, how, screen)


def _show_plan(ablation: Ablation, folder: Path, how: How, as_json: bool) -> None:
    from sera_core.ablating.run import grid_of
    from sera_core.ablating.screen import outlook_lines, plan_rows, plan_table
    from sera_core.cli import emit
    from sera_core.executors import check_executor

    check_executor(how.executor)
    grid, kept = grid_of(ablation, folder, how)
    rows = plan_rows(grid, kept)
    if as_json:
        emit({"name": ablation.name, **grid.outlook().plain(), "arms": rows})
        return
    console = Console()
    console.print(plan_table(ablation, rows))
    for line in outlook_lines(grid.outlook()):
        console.print(line, highlight=False)


def _show_results(ablation: Ablation, folder: Path, results: list[Result], console: Console, as_json: bool) -> None:
    from sera_core.ablating.jobs import plain
    from sera_core.ablating.screen import sharing_line
    from sera_core.ablation_table import ablation_table, frontier_table
    from sera_core.cli import emit
    from sera_core.report import write_report

    # A report is about finished runs.
    page = write_report(folder)[0] if any(result.error is None for result in results) else None
    if as_json:
        emit([plain(result) for result in results])
        return
    console.print(ablation_table(ablation, results))
    frontier = frontier_table(ablation, results)
    if frontier is not None:
        console.print(frontier)
    console.print(sharing_line(results), highlight=False)
    console.print(f"Results: {folder / 'results.json'}", soft_wrap=True)
    if page is not None:
        console.print(f"Report: {page}", soft_wrap=True)

"""The command `sera ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from sera_core.ablate import Result
    from sera_core.ablation import Ablation

FAILED = 1


def ablate(
    config: Annotated[str, typer.Argument(help="A shipped ablation's name or a YAML file.")],
    out: Annotated[Path | None, typer.Option("--out", help="The folder of all runs (default: runs/<name>).")] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Shared cache (default: SERA_CACHE or the user cache).")
    ] = None,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Runs at a time.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs, nothing else.")] = False,
    plan_only: Annotated[bool, typer.Option("--plan", help="Check every arm, list the runs, compute nothing.")] = False,
) -> None:
    """Compare variants over seeds. Interrupted or extended, the same command computes only what is missing."""
    from sera_core.ablate import check_arms, jobs_of, plain
    from sera_core.ablation import locate_ablation, read_ablation
    from sera_core.ablation_table import ablation_table
    from sera_core.cli import emit

    ablation = read_ablation(locate_ablation(config))
    folder = out or Path("runs") / ablation.name
    if plan_only:
        check_arms(ablation)
        emit([{"arm": job.arm.name, "seed": job.seed, "out": str(job.out)} for job in jobs_of(ablation, folder)])
        return
    console = Console(stderr=as_json)
    results = watched(ablation, folder, cache, processes, console)
    if as_json:
        emit([plain(result) for result in results])
    else:
        console.print(ablation_table(ablation, results))
        console.print(f"Results: {folder / 'results.json'}", soft_wrap=True)
    if any(result.error is not None for result in results):
        raise typer.Exit(FAILED)


def watched(
    ablation: Ablation, folder: Path, cache: Path | None, processes: int, console: Console
) -> tuple[Result, ...]:
    """Run an ablation with a progress bar, naming each run that fails."""
    from sera_core.ablate import ablate as run_ablation

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(ablation.name, total=len(ablation.arms) * len(ablation.seeds))

        def done(result: Result) -> None:
            progress.advance(task)
            if result.error is not None:
                console.print(f"[red]✗[/red] {escape(f'{result.arm}, seed {result.seed}: {result.error}')}")

        return run_ablation(ablation, folder, cache=cache, processes=processes, done=done)

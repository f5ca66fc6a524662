"""The command `sera tune`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sera_core.cli_ablate import FAILED, watched

if TYPE_CHECKING:
    from sera_core.tune import Trial, Tuning


def tune(
    config: Annotated[str, typer.Argument(help="A preset's name (see `sera configs`) or a YAML file.")],
    choice: Annotated[str, typer.Argument(metavar="KEY=VALUE,VALUE,...", help="The option and what to pick from.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="As for `sera run`.")] = None,
    pairs: Annotated[
        int | None, typer.Option("--pairs", min=1, help="Held-out pairs to decide on (default: the config's, else 50).")
    ] = None,
    metric: Annotated[str, typer.Option("--metric", help="What decides: accuracy or margin_mean.")] = "accuracy",
    seeds: Annotated[str | None, typer.Option("--seeds", help="Such as 0,1,2 (default: the config's).")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The folder of all runs.")] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Shared cache (default: SERA_CACHE or the user cache).")
    ] = None,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Runs at a time.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs, nothing else.")] = False,
) -> None:
    """Pick an option's value on held-out pairs that no other figure uses, and write a config with it."""
    from sera_core import configfile
    from sera_core.ablating.run import How
    from sera_core.cli import emit
    from sera_core.executors.budget import Budget
    from sera_core.tune import make_tuning, read_choice, read_seeds, trials_of, write_findings

    settings = configfile.override(configfile.read(configfile.locate(config)), overrides or [])
    settings.setdefault("name", Path(config).stem)
    wanted = () if seeds is None else read_seeds(seeds)
    tuning = make_tuning(settings, read_choice(choice), metric=metric, pairs=pairs, seeds=wanted)
    folder = out or Path("runs") / tuning.ablation.name
    console = Console(stderr=as_json)
    results = watched(tuning.ablation, folder, How(cache=cache, budget=Budget(processes)), console)
    trials = trials_of(tuning, results)
    findings = write_findings(tuning, trials, settings, folder)
    if as_json:
        emit(findings)
    else:
        _tell(console, tuning, trials, findings)
    if any(trial.failed for trial in trials):
        raise typer.Exit(FAILED)


def _tell(console: Console, tuning: Tuning, trials: Sequence[Trial], findings: dict[str, Any]) -> None:
    console.print(tuning_table(tuning, trials))
    if findings["config"] is None:
        console.print("No value can be picked: every one of them has a run that failed.")
        return
    console.print(f"Picked: {escape(tuning.choice.path)} = {escape(str(findings['best']))}", highlight=False)
    console.print(f"Run it: sera run {findings['config']}", soft_wrap=True)


def tuning_table(tuning: Tuning, trials: Sequence[Trial]) -> Table:
    """A row per value, the picked one marked: the tuning pairs that decide, then all other held-out pairs."""
    from sera_core.ablation_table import shown
    from sera_core.tune import METRICS, best_of

    best = best_of(tuning, trials)
    seeds, pairs = len(tuning.ablation.seeds), tuning.pairs
    title = f"{tuning.choice.path}: {tuning.metric} on {pairs} held-out pair{'s' * (pairs > 1)}, "
    table = Table(title=escape(f"{title}{seeds} seed{'s' * (seeds > 1)}"), title_justify="left", box=SIMPLE_HEAD)
    table.add_column("")
    table.add_column("value", no_wrap=True)
    for where in ("tuning", "held-out"):
        for name in METRICS:
            table.add_column(f"{where} {name.removesuffix('_mean')}", justify="right")
    table.add_column("failed", justify="right")
    for trial in trials:
        found = [side.get(name) for side in (trial.tuning, trial.held_out) for name in METRICS]
        cells = ["-" if value is None else shown(value, 3) for value in found]
        mark = "→" if trial is best else ""
        style = "bold" if trial is best else None
        table.add_row(mark, escape(str(trial.value)), *cells, str(trial.failed or "-"), style=style)
    return table

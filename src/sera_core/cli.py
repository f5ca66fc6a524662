"""The command `sera`. Errors a user can act on end as one message and exit code 2, without a traceback."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sera_core import __version__
from sera_core.cli_ablate import ablate
from sera_core.cli_report import report
from sera_core.cli_tune import tune
from sera_core.errors import SeraError

if TYPE_CHECKING:
    from sera_core.ranks import Ranks

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Compose self-alignment methods for language models and find out which of them work.",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs, nothing else.")]
Cache = Annotated[Path | None, typer.Option("--cache", help="Shared cache (default: SERA_CACHE or the user cache).")]

_REFUSED = 2
# What shells use for a program stopped by Ctrl-C.
_INTERRUPTED = 130


def emit(value: object) -> None:
    """Print a value as JSON on standard output."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


@app.command()
def run(
    config: Annotated[str, typer.Argument(help="A preset's name (see `sera configs`) or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as seed=1.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder.")] = None,
    cache: Cache = None,
    as_json: Json = False,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Check everything, print the plan, compute nothing.")
    ] = False,
) -> None:
    """Align a policy. Interrupted, the same command continues where it stopped. A launcher may start several."""
    from sera_core import configfile
    from sera_core.ranks import join

    ranks = join()
    try:
        settings = configfile.override(configfile.read(configfile.locate(config)), overrides or [])
        settings.setdefault("name", Path(config).stem)
        if plan_only:
            _print_plan(settings, ranks)
        else:
            _align(settings, ranks, out, cache, as_json)
    except SeraError as error:
        message = str(error)
        ranks.tell(error, lambda: _complain(message))
        raise typer.Exit(_REFUSED) from None
    except KeyboardInterrupt:
        # Typer would make it an abort with exit code 1.
        if ranks.main:
            Console(stderr=True).print("Interrupted. Run the same command again to continue.")
        raise typer.Exit(_INTERRUPTED) from None
    ranks.leave()


def _print_plan(settings: Mapping[str, Any], ranks: Ranks) -> None:
    from sera_core.catalog import load_catalog
    from sera_core.plan import make_plan
    from sera_core.resolved import resolved_settings

    plan = make_plan(settings, load_catalog())
    iterations = [resolved_settings(plan, step) for step in plan.iterations]
    if ranks.main:
        emit({"components": dict(sorted(plan.provenance.items())), "iterations": iterations})


def _align(settings: Mapping[str, Any], ranks: Ranks, out: Path | None, cache: Path | None, as_json: bool) -> None:
    if not ranks.main:
        from sera_core import runner

        runner.run(settings, out=out, cache=cache)
        return
    from sera_core.console import ConsoleReporter

    console = Console(stderr=as_json)
    with ConsoleReporter(console) as reporter:
        from sera_core import runner

        result = runner.run(settings, out=out, cache=cache, reporter=reporter)
    if as_json:
        emit(dict(result.summary))
        return
    console.print(f"Report: {result.out / 'summary.json'}", soft_wrap=True)
    console.print(f"Final model: {result.model}", soft_wrap=True)


app.command()(ablate)
app.command()(report)
app.command()(tune)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
    as_json: Json = False,
) -> None:
    """Finished runs side by side."""
    from sera_core.console import comparison_table

    summaries = [_read(folder, "summary.json") for folder in runs]
    if as_json:
        emit(summaries)
        return
    console = Console()
    final = [_final_iteration(folder) for folder in runs]
    console.print(comparison_table(summaries, final))
    for folder, summary in zip(runs, summaries, strict=True):
        console.print(
            f"{summary['name']}: report {folder / 'summary.json'}, model {summary['final_model']}", soft_wrap=True
        )


def _final_iteration(folder: Path) -> int:
    manifest = _read(folder, "manifest.json")
    if "final_iteration" not in manifest:
        raise SeraError(
            f"The run in {folder} was started again and is not finished. Run the same `sera run` command to finish it."
        )
    return int(manifest["final_iteration"])


def _read(folder: Path, name: str) -> Any:  # noqa: ANN401
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SeraError(
            f"{folder} holds no finished run: {folder / name} cannot be read ({error}). "
            "Run the same `sera run` command again to finish it."
        ) from error


@app.command()
def plugins(
    as_json: Json = False,
    hooks: Annotated[bool, typer.Option("--hooks", help="List hook specifications instead.")] = False,
) -> None:
    """Every registered component and the distribution it comes from."""
    if hooks:
        _print_hooks(as_json)
        return
    from sera_core.catalog import load_catalog

    entries = load_catalog().entries()
    if as_json:
        keys = ("role", "name", "plugin", "distribution", "version", "summary")
        emit([{key: getattr(entry, key) for key in keys} for entry in entries])
        return
    table = Table(title="Components", title_justify="left")
    for heading in ("role", "name", "from", "what it does"):
        table.add_column(heading)
    for entry in entries:
        table.add_row(*map(escape, (entry.role, entry.name, f"{entry.distribution} {entry.version}", entry.summary)))
    Console().print(table)


def _print_hooks(as_json: bool) -> None:
    from sera_core import hookspecs

    names = sorted(name for name in vars(hookspecs) if name.startswith("sera_"))
    lines = {name: (getattr(hookspecs, name).__doc__ or "").strip().partition("\n")[0] for name in names}
    if as_json:
        emit(lines)
        return
    for name, line in lines.items():
        typer.echo(f"{name}\n    {line}")


@app.command()
def describe(
    role: Annotated[str, typer.Argument(help="Such as objective, scorer, selector.")],
    name: Annotated[str, typer.Argument(help="The component's name.")],
    as_json: Json = False,
) -> None:
    """What a component does, its options and defaults, and where it comes from."""
    from sera_core.catalog import load_catalog
    from sera_core.describe import description

    found = description(load_catalog().entry(role, name))
    if as_json:
        emit(found)
        return
    console = Console()
    console.print(f"[bold]{role} {name}[/bold]  {found['provenance']}\n", highlight=False)
    console.print(found["documentation"], markup=False, highlight=False)
    table = Table(title="Options", title_justify="left")
    for heading in ("option", "type", "default"):
        table.add_column(heading)
    for option in found["options"]:
        table.add_row(*map(escape, (option["name"], option["type"], option["default"])))
    console.print(table if found["options"] else "No options.")
    for key in ("defaults", "component_defaults"):
        if found.get(key):
            console.print(f"{key.replace('_', ' ')}: {json.dumps(found[key], indent=2)}", markup=False)


@app.command()
def configs(as_json: Json = False) -> None:
    """The shipped configurations: name, description, papers."""
    from sera_core import configfile

    found = [
        {"name": name, "path": str(path), **{key: raw.get(key) for key in ("description", "cites")}}
        for name, path in configfile.presets().items()
        for raw in [configfile.read(path)]
    ]
    if as_json:
        emit(found)
        return
    table = Table(title="Presets", title_justify="left")
    for heading in ("name", "what it runs", "papers"):
        table.add_column(heading)
    for entry in found:
        papers = "; ".join(entry["cites"] or [])
        table.add_row(*(escape(str(cell)) for cell in (entry["name"], entry["description"], papers)))
    Console().print(table)


@app.command()
def doctor(cache: Cache = None, as_json: Json = False) -> None:
    """Check the installation: versions, plugins, devices, cache, optional extras."""
    from sera_core.doctor import diagnose

    found = diagnose(cache)
    if as_json:
        emit(found)
    else:
        table = Table(title="sera doctor", title_justify="left")
        for heading in ("check", "state", "detail"):
            table.add_column(heading)
        for item in found:
            colour = {"ok": "green", "missing": "yellow", "problem": "red"}[item["state"]]
            table.add_row(escape(item["check"]), f"[{colour}]{item['state']}[/{colour}]", escape(item["detail"]))
        Console().print(table)
    if any(item["state"] == "problem" for item in found):
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Compose self-alignment methods for language models and find out which of them work."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: run the command, turning a SeraError into one message and exit code 2."""
    try:
        app()
    except SeraError as error:
        _complain(str(error))
        sys.exit(_REFUSED)


def _complain(message: str) -> None:
    Console(stderr=True).print(f"[red]Error:[/red] {escape(message)}", highlight=False, soft_wrap=True)

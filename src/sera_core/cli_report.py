"""The command `sera report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def report(
    path: Annotated[Path, typer.Argument(help="The folder of an ablation, or of one run.")],
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="Arm or variant to compare with (default: the ablation's own).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs, nothing else.")] = False,
) -> None:
    """Write report.html and report.md into a folder: tables with intervals, figures, warnings."""
    from sera_core.cli import emit
    from sera_core.report import write_report

    page, text = write_report(path, baseline=baseline)
    if as_json:
        emit({"html": str(page), "markdown": str(text)})
        return
    console = Console()
    for file in (page, text):
        console.print(f"Report: {file}", soft_wrap=True)

"""Write the report of a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from sera_core.report.blocks import Page
from sera_core.report.cost import cost
from sera_core.report.curves import learning_curves
from sera_core.report.draw import drawings_of, standalone
from sera_core.report.frontiers import frontiers
from sera_core.report.html import html
from sera_core.report.markdown import markdown
from sera_core.report.pairs import drops, margins, selection, weights
from sera_core.report.results import read_all, results
from sera_core.report.rivals import head_to_head
from sera_core.report.samples import length_and_reward
from sera_core.report.signs import histories_of, warnings_of
from sera_core.report.study import Study, read_study
from sera_core.report.unchecked import unchecked_of
from sera_core.report.what import what_was_run
from sera_core.workspace import disk_refusals

FILES = "report_files"


def write_report(folder: Path, *, baseline: str | None = None) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.md`` of the ablation or the run in `folder`, into it.

    The HTML file needs nothing else; the Markdown shows the figures in ``report_files/``. Equal results give equal
    files. `baseline` is an arm, or a variant, to compare all others with in place of the ablation's own baseline.

    Returns:
        The two files.

    Raises:
        StoreError: `folder` is neither, nothing in it is finished, a file in it is damaged, or the disk refuses.
        ConfigError: there is no such baseline.
    """
    page = page_of(read_study(folder, baseline))
    drawings = drawings_of(page)
    paths = folder / "report.html", folder / "report.md"
    with disk_refusals("The report", folder):
        if (folder / FILES).exists():
            shutil.rmtree(folder / FILES)
        (folder / FILES).mkdir()
        for name, drawing in drawings.items():
            (folder / FILES / f"{name}.svg").write_text(standalone(drawing), encoding="utf-8")
        for path, content in zip(paths, (html(page, drawings), markdown(page, FILES)), strict=True):
            path.write_text(content, encoding="utf-8")
    return paths


def page_of(study: Study) -> Page:
    """Everything the report says of a study."""
    outcomes, histories = read_all(study), histories_of(study)
    return Page(
        title=study.name,
        lead=_lead(study),
        warnings=warnings_of(study, histories),
        sections=(
            results(study, outcomes),
            *frontiers(study, outcomes),
            learning_curves(study, histories),
            *(() if study.single else (head_to_head(study),)),
            length_and_reward(study),
            margins(study),
            weights(study),
            selection(study),
            drops(study),
            cost(study),
            what_was_run(study),
        ),
        unchecked=unchecked_of(study, histories),
    )


def _lead(study: Study) -> str:
    if study.single:
        run = study.runs[0]
        return f"A run of {len(run.reports)} iterations, seed {run.seed}; the final model is iteration {run.final}'s."
    runs = len(study.arms) * len(study.seeds)
    finished = "all finished" if len(study.runs) == runs else f"{len(study.runs)} finished"
    text = f"{len(study.arms)} arms, {len(study.seeds)} seeds, {runs} runs, {finished}."
    return f"{study.description} {text}" if study.description else text

"""A page as Markdown, its figures as SVG files beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from sera_core.report.blocks import Figure, Page, Section, Table, Text
from sera_core.report.draw import name_of

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&])")
# What makes a list or a rule of a line that begins with it.
_LEADING = re.compile(r"^(\d{1,9}(?=[.)](?: |$))|(?=[-+](?: |$)|-+$))(.)")


def markdown(page: Page, folder: str) -> str:
    """The text; `folder` is where its figures lie, as ``<name_of>.svg``, relative to it."""
    lines = [f"# {escaped(page.title)}", "", paragraph(page.lead), ""]
    if page.warnings:
        lines += ["## Warnings", "", *(f"- {paragraph(warning)}" for warning in page.warnings), ""]
    if page.assurance:
        lines += [paragraph(page.assurance), ""]
    for section in page.sections:
        lines += _section(section, folder)
    return "\n".join(lines).rstrip() + "\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def paragraph(text: str) -> str:
    """Text that Markdown shows as it is, on a line of its own, whatever it begins with."""
    return _LEADING.sub(r"\1\\\2", escaped(text))


def _section(section: Section, folder: str) -> Iterator[str]:
    yield from (f"## {escaped(section.title)}", "")
    for block in section.blocks:
        if isinstance(block, Text):
            yield from (paragraph(block.text), "")
        elif isinstance(block, Table):
            yield from _table(block)
        else:
            yield from _figure(block, folder)


def _table(table: Table) -> Iterator[str]:
    yield from (f"**{escaped(table.title)}**", "", _row(table.columns), _row(["---"] * len(table.columns), raw=True))
    yield from map(_row, table.rows)
    yield ""
    if table.note:
        yield from (paragraph(table.note), "")


def _row(cells: Sequence[str], *, raw: bool = False) -> str:
    return f"| {' | '.join(cell if raw else escaped(cell) for cell in cells)} |"


def _figure(figure: Figure, folder: str) -> Iterator[str]:
    yield from (paragraph(figure.caption), "")
    for number, chart in enumerate(figure.charts):
        shown = f"{escaped(chart.title)}: {escaped(chart.y_name)} by {escaped(chart.x_name)}"
        yield from (f"![{shown}]({folder}/{name_of(figure, number)}.svg)", "")

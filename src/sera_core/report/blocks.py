"""What a page is made of: text, tables and figures as plain data. Nothing here knows HTML, Markdown or drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

NONE = "-"


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under column names, the first column naming the row.

    `shades` colours cells: one value in [-1, 1] per cell, None for no colour, rows as in `rows`; -1 and 1 are the two
    colours at their strongest. `note` explains the columns.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    shades: tuple[tuple[float | None, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Series:
    """Points that belong together. `low` and `high`, where given, are the ends of each point's bar."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """One pair of axes; both names carry the unit.

    ``lines`` joins the points of each series, ``points`` does not. ``bars`` stacks the counts `y` of each series over
    the bins between `edges`, one more than there are counts. With `root` the x axis is even in the root of what its
    labels say.
    """

    title: str
    kind: Literal["lines", "points", "bars"]
    x_name: str
    y_name: str
    series: tuple[Series, ...]
    edges: tuple[float, ...] = ()
    root: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """Charts side by side under one caption; `name` is unique on the page and fit for a file."""

    name: str
    caption: str
    charts: tuple[Chart, ...]


Block: TypeAlias = Text | Table | Figure


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """The whole report.

    `warnings` are sentences, the gravest first; `unchecked` names what could not be looked for, each with the reason.
    """

    title: str
    lead: str
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]
    unchecked: tuple[str, ...] = ()

    @property
    def assurance(self) -> str:
        """What stands below the warnings, or in their place: whether there are none, and what could not be checked."""
        looked = "could be looked for" if self.unchecked else "this report looks for"
        none = "" if self.warnings else f"No warning: no run shows a sign of reward hacking that {looked}."
        return " ".join((none, f"Not checked: {'; '.join(self.unchecked)}." if self.unchecked else "")).strip()


def number(value: float | None, digits: int, sign: str = "") -> str:
    """A number for a cell; a dash where there is none."""
    return NONE if value is None else f"{value:{sign}.{digits}f}"


def between(mean: float | None, low: float | None, high: float | None, digits: int, sign: str = "") -> str:
    """``mean [low, high]``, the mean alone where nothing says how far to go, a dash where there is none."""
    text = number(mean, digits, sign)
    return (
        text
        if mean is None or low is None or high is None
        else f"{text} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
    )


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> Table:
    """A table without colours from any sequences."""
    return Table(title, tuple(columns), tuple(tuple(row) for row in rows), note)

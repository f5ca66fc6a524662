"""Charts as SVG. Equal charts give equal text, and colours of text and axes are left to the page."""

from __future__ import annotations

import io
import re
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any
from unicodedata import east_asian_width

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator

from sera_core.records import Floats
from sera_core.report.blocks import Chart, Figure, Page

# Seen on white and on near-black, and told apart by people who confuse red and green (Okabe and Ito 2008).
COLOURS = ("#2383c9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c8c8c", "#b59f00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Stands for the page's text colour until the SVG is placed.
_INK = "#010203"
# Inches: the axes, the room for tick labels and the name left of them, and half a tick label right of them.
_AXES, _LEFT, _RIGHT = (3.8, 2.5), 0.8, 0.1
_WIDTH = _LEFT + _AXES[0] + _RIGHT
# Points of text that the title, and a legend of one and of two columns, have room for beside their marks.
_TITLE, _ONE_COLUMN, _TWO_COLUMNS = 260.0, 270.0, 120.0
_TITLE_SIZE, _LEGEND_SIZE = 10, 8
# No XML file may hold these, escaped or not.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": _TITLE_SIZE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "legend.fontsize": _LEGEND_SIZE,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), _INK
    ),
}


def drawings_of(page: Page) -> dict[str, str]:
    """Every chart of a page by its `name_of`, drawn once, for `inline` and `standalone`."""
    figures = [block for section in page.sections for block in section.blocks if isinstance(block, Figure)]
    named = {name_of(figure, number): chart for figure in figures for number, chart in enumerate(figure.charts)}
    return {name: drawn(chart, name) for name, chart in named.items()}


def name_of(figure: Figure, number: int) -> str:
    """What the chart of a figure with a number, from 0, is called."""
    return f"{figure.name}-{number + 1}"


def inline(drawing: str) -> str:
    """A drawing as an ``<svg>`` element whose text takes the colour of the page."""
    return drawing.replace(_INK, "currentColor")


def standalone(drawing: str) -> str:
    """A drawing as an SVG file of its own, dark on white."""
    return drawing.replace(_INK, "#222222").replace("<svg ", '<svg style="background: white" ', 1) + "\n"


def drawn(chart: Chart, name: str) -> str:
    """The chart as an ``<svg>`` element without a size; `name` keeps its ids its own."""
    with rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():  # type: ignore[dict-item]  # data
        # Text stays text, so the page's fonts show what matplotlib's own lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas = canvas_of(chart)
        file = io.StringIO()
        canvas.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return _own_ids(file.getvalue(), name)


def canvas_of(chart: Chart) -> Canvas:
    """The chart with title, named axes and, where series need names, a legend below; as high as these make it.

    Meant to be drawn with `STYLE`.
    """
    canvas = Canvas()
    axes = canvas.add_axes((0.0, 0.0, 1.0, 1.0))
    handles = {"lines": _lines, "points": _points, "bars": _bars}[chart.kind](axes, chart)
    if chart.root:
        axes.set_xscale("function", functions=(_root, np.square))
        axes.set_xlim(left=0.0)
    title = _lines_of(chart.title, _TITLE_SIZE, _TITLE)
    axes.set_title("\n".join(title))
    axes.set_xlabel(chart.x_name)
    axes.set_ylabel(chart.y_name)
    above, below = 0.12 + 0.17 * len(title), 0.5
    if len(handles) > 1 or chart.kind == "bars":
        below += _legend(canvas, handles, [series.label for series in chart.series])
    height = _AXES[1] + above + below
    canvas.set_size_inches(_WIDTH, height)
    axes.set_position((_LEFT / _WIDTH, below / height, _AXES[0] / _WIDTH, _AXES[1] / height))
    return canvas


def _root(values: Floats) -> Floats:
    """Roots; 0 of values below 0, which an axis may try."""
    found: Floats = np.sqrt(np.maximum(values, 0.0))
    return found


def _legend(canvas: Canvas, handles: Sequence[Any], labels: Sequence[str]) -> float:
    """Put a legend at the bottom, every label as wide as there is room; its height in inches."""
    half = all(len(_lines_of(label, _LEGEND_SIZE, _TWO_COLUMNS)) == 1 for label in labels)
    # Numbers first: matplotlib leaves out a series whose name begins with an underscore.
    numbers = [str(number) for number in range(len(labels))]
    legend = canvas.legend(handles, numbers, loc="lower center", ncols=2 if half else 1, borderaxespad=0.2)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text("\n".join(_lines_of(label, _LEGEND_SIZE, _ONE_COLUMN)))
    return float(legend.get_window_extent().height / canvas.dpi)


def _lines_of(text: str, size: float, room: float) -> list[str]:
    """Text cut into lines of at most `room` points, after a blank, comma or hyphen where there is one."""
    font, rest, lines = FontProperties(size=size), " ".join(_FORBIDDEN.sub("\ufffd", text).split()), []
    while rest:
        fits = max(1, bisect_right(range(1, len(rest) + 1), room, key=lambda n: _width(rest[:n], font)))
        if fits < len(rest):
            fits = max(rest.rfind(mark, 0, fits) for mark in " ,-") + 1 or fits
        lines.append(rest[:fits].strip())
        rest = rest[fits:].lstrip()
    return lines or [""]


def _width(text: str, font: FontProperties) -> float:
    """Points that a text takes in the font that matplotlib brings along, which is wider than most."""
    # It lacks the characters that are as wide as high.
    narrow = "".join(character for character in text if east_asian_width(character) not in "WF")
    measured = text_to_path.get_text_width_height_descent(narrow, font, ismath=False)[0]
    return float(measured + (len(text) - len(narrow)) * font.get_size())


def _looks() -> Iterator[tuple[str, str]]:
    while True:
        yield from zip(COLOURS, _MARKERS, strict=True)


def _lines(axes: Axes, chart: Chart) -> list[Any]:
    count, handles = len(chart.series), []
    whole = all(x.is_integer() for series in chart.series for x in series.x)
    for number, (series, (colour, marker)) in enumerate(zip(chart.series, _looks(), strict=False)):
        # Seeds' bars of several arms would hide each other.
        shift = 0.03 * (number - (count - 1) / 2) if whole else 0.0
        x = [value + shift for value in series.x]
        handles += axes.plot(x, series.y, color=colour, marker=marker, markersize=4, linewidth=1.5)
        if series.low:
            axes.vlines(x, series.low, series.high, color=colour, linewidth=1, alpha=0.7)
    if whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return handles


def _points(axes: Axes, chart: Chart) -> list[Any]:
    return [
        axes.scatter(series.x, series.y, s=9, color=colour, marker=marker, alpha=0.5, linewidths=0)
        for series, (colour, marker) in zip(chart.series, _looks(), strict=False)
    ]


def _bars(axes: Axes, chart: Chart) -> list[Any]:
    widths = [high - low for low, high in zip(chart.edges, chart.edges[1:], strict=False)]
    below, handles = [0.0] * len(widths), []
    for series, (colour, _) in zip(chart.series, _looks(), strict=False):
        handles.append(axes.bar(chart.edges[:-1], series.y, widths, bottom=below, align="edge", color=colour))
        below = [first + second for first, second in zip(below, series.y, strict=True)]
    return handles


def _own_ids(text: str, name: str) -> str:
    """The ``<svg>`` element alone, with every id and what refers to it behind `name`."""
    text = text[text.index("<svg") :].rstrip()
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    return re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)

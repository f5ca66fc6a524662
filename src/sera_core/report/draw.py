"""Charts as SVG. Equal charts give equal text, and colours of text and axes are left to the page."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from sera_core.report.blocks import Chart, Figure, Page

# Seen on white and on near-black, and told apart by people who confuse red and green (Okabe and Ito 2008).
COLOURS = ("#2383c9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c8c8c", "#b59f00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Stands for the page's text colour until the SVG is placed.
_INK = "#010203"
# Inches: the axes, the room for tick labels and the name left of them, and half a tick label right of them.
_AXES, _LEFT, _RIGHT = (3.8, 2.5), 0.8, 0.1
_TITLE_WIDTH = 48
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "legend.fontsize": 8,
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
    with rc_context({**_STYLE, "svg.hashsalt": name}):  # type: ignore[dict-item]  # keys are data here
        canvas = _canvas(chart)
        file = io.StringIO()
        canvas.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return _own_ids(file.getvalue(), name)


def _canvas(chart: Chart) -> Canvas:
    """The chart with title, named axes and, where series need names, a legend below that makes it higher."""
    title = textwrap.wrap(chart.title, _TITLE_WIDTH)
    above, below = 0.12 + 0.17 * len(title), 0.55 + 0.17 * _legend_rows(chart)
    height = _AXES[1] + above + below
    width = _LEFT + _AXES[0] + _RIGHT
    canvas = Canvas(figsize=(width, height))
    axes = canvas.add_axes((_LEFT / width, below / height, _AXES[0] / width, _AXES[1] / height))
    {"lines": _lines, "points": _points, "bars": _bars}[chart.kind](axes, chart)
    axes.set_title("\n".join(title))
    axes.set_xlabel(chart.x_name)
    axes.set_ylabel(chart.y_name)
    if _has_legend(chart):
        canvas.legend(loc="lower center", ncols=1 if _long(chart) else 2)
    return canvas


def _legend_rows(chart: Chart) -> int:
    count = len(chart.series)
    return 0 if not _has_legend(chart) else count if _long(chart) else -(-count // 2)


def _has_legend(chart: Chart) -> bool:
    return len(chart.series) > 1 or chart.kind == "bars"


def _long(chart: Chart) -> bool:
    return max(len(series.label) for series in chart.series) > 30


def _looks() -> Iterator[tuple[str, str]]:
    while True:
        yield from zip(COLOURS, _MARKERS, strict=True)


def _lines(axes: Axes, chart: Chart) -> None:
    count = len(chart.series)
    whole = all(x.is_integer() for series in chart.series for x in series.x)
    for number, (series, (colour, marker)) in enumerate(zip(chart.series, _looks(), strict=False)):
        # Seeds' bars of several arms would hide each other.
        shift = 0.03 * (number - (count - 1) / 2) if whole else 0.0
        x = [value + shift for value in series.x]
        axes.plot(x, series.y, color=colour, marker=marker, markersize=4, linewidth=1.5, label=series.label)
        if series.low:
            axes.vlines(x, series.low, series.high, color=colour, linewidth=1, alpha=0.7)
    if whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _points(axes: Axes, chart: Chart) -> None:
    for series, (colour, marker) in zip(chart.series, _looks(), strict=False):
        axes.scatter(series.x, series.y, s=9, color=colour, marker=marker, alpha=0.5, linewidths=0, label=series.label)


def _bars(axes: Axes, chart: Chart) -> None:
    widths = [high - low for low, high in zip(chart.edges, chart.edges[1:], strict=False)]
    below = [0.0] * len(widths)
    for series, (colour, _) in zip(chart.series, _looks(), strict=False):
        axes.bar(chart.edges[:-1], series.y, widths, bottom=below, align="edge", color=colour, label=series.label)
        below = [first + second for first, second in zip(below, series.y, strict=True)]


def _own_ids(text: str, name: str) -> str:
    """The ``<svg>`` element alone, with every id and what refers to it behind `name`."""
    text = text[text.index("<svg") :].rstrip()
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    return re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)

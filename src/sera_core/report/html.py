"""A page as one HTML file that needs nothing else: style inline, figures as inline SVG, all text escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sera_core.report.blocks import Figure, Page, Table
from sera_core.report.draw import inline, name_of

# Cells with more text than this may break their lines.
_LONG = 60
# How strong the strongest colour of a cell is; text stays readable on it in both schemes.
_DEEPEST = 0.45


def html(page: Page, drawings: Mapping[str, str]) -> str:
    """The whole file, with the page's `drawings` in it. Equal pages give equal text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def drawing(figure: Figure, number: int) -> Markup:
        # matplotlib escapes what it is given.
        return Markup(inline(drawings[name_of(figure, number)]))  # noqa: S704  # no markup of others is in it

    environment.tests |= {"table": lambda block: isinstance(block, Table), "figure": lambda b: isinstance(b, Figure)}
    return environment.get_template("page.html.j2").render(page=page, svg=drawing, shade=_attributes)


def _attributes(shades: Sequence[float | None] | None, column: int, cell: str) -> Markup:
    """Class and style of a cell; nothing in them comes from data but a number."""
    shade = None if shades is None else shades[column]
    if shade:
        depth = _DEEPEST * min(1.0, abs(shade))
        return Markup(' class="{}" style="--depth: {:.2f}"').format("plus" if shade > 0 else "minus", depth)
    return Markup(' class="long"') if len(cell) > _LONG else Markup("")

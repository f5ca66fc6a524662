"""Figures of the documentation are what their scripts draw."""

import re
import runpy

import pytest
from doc_pages import ROOT

SCRIPTS = sorted((ROOT / "docs" / "figures").glob("*.py"))


def points(svg):
    """Every number of every path, rounded: library versions differ in the last digits and in decoration."""
    paths = re.findall(r' d="([^"]*)"', svg)
    return [[round(float(number), 1) for number in re.findall(r"-?\d+\.?\d*", path)] for path in paths]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_figure_is_what_its_script_draws(script, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the docs extra")
    target = tmp_path / "figure.svg"
    runpy.run_path(str(script))["draw"](target)
    kept = ROOT / "docs" / "images" / f"{script.stem}.svg"
    assert points(target.read_text("utf-8")) == points(kept.read_text("utf-8"))

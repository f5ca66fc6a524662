"""Numbers that the page on worst-case reweighting states are those of the code."""

import re

import pytest
from doc_pages import section

from sera_plugin_dro import Wasserstein
from sera_solvers import NEG_LOG, tangent_gap, tangents

PAGE = "docs/worst_case.md"


def test_the_tangent_gaps_of_the_page():
    text = " ".join(section(PAGE, "The program").split())
    sentence = re.search(r"`tangent_gap` \(([^)]*)\)", text)[1]
    first, *others = re.findall(r"(\d\.\de-\d) for (\d+)", sentence)
    support = (0.01, 1.0)
    assert f"{first[1]} pieces on [{support[0]:g}, {support[1]:g}]" in sentence
    assert len(others) == 2
    for gap, pieces in (first, *others):
        assert float(gap) == float(f"{tangent_gap(NEG_LOG, tangents(NEG_LOG, support, int(pieces)), support):.1e}")


@pytest.mark.parametrize("page", [PAGE, "plugins/dro/README.md"])
def test_the_default_refresh_of_the_pages(page):
    text = section(page, "What the radius means") if page == PAGE else section(page, "wasserstein")
    stated = re.search(r"`refresh`\s+(?:epochs )?\(([\d.]+)\)", text)[1]
    assert float(stated) == Wasserstein().refresh

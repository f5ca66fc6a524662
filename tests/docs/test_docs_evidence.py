"""The pages of evidence are what their scripts write, and their rules of verdict are what they say."""

import json

import pytest
from doc_pages import ROOT

FIGURES = ROOT / "docs" / "tables" / "evidence.json"


@pytest.mark.parametrize("name", ["evidence", "language_model"])
def test_a_page_is_what_its_script_writes_from_measured_figures(script, name):
    written = script(name)["page"]()
    assert written == (ROOT / "docs" / f"{name}.md").read_text("utf-8"), f"run docs/tables/{name}.py"


@pytest.mark.parametrize(
    ("mean", "low", "high", "p", "options", "expected"),
    [
        (0.1, 0.05, 0.15, 0.001, {}, "holds"),
        (-0.1, -0.15, -0.05, 0.001, {}, "does not hold"),
        (-0.1, -0.15, -0.05, 0.001, {"sign": -1, "figure": "kl_to_initial"}, "holds"),
        (0.1, 0.01, 0.19, 0.5, {"sign": -1, "figure": "kl_to_initial"}, "undecided"),
        (0.1, -0.05, 0.25, 0.5, {}, "undecided"),
        (0.005, -0.005, 0.015, 0.5, {}, "does not hold"),
        (0.005, 0.001, 0.009, 0.001, {}, "holds"),
        (0.005, -0.005, 0.015, 0.001, {"margin": True}, "holds"),
        (-0.05, -0.06, -0.04, 0.001, {"margin": True}, "does not hold"),
        (-0.01, -0.05, 0.03, 0.5, {"margin": True}, "undecided"),
    ],
)
def test_verdicts_follow_the_rule_on_the_page(script, mean, low, high, p, options, expected):
    names = script("evidence")
    check = names["Check"]("a claim", "ours", "theirs", **options)
    assert names["verdict"](check, {"mean": mean, "low": low, "high": high, "p_holm": p}) == expected


def test_every_claim_was_measured_with_all_its_seeds(script):
    found = json.loads(FIGURES.read_text("utf-8"))
    for paper in script("evidence")["read_claims"]():
        for check in (*paper["claims"], *paper["causes"]):
            kept = [found["checks"].get(check.key(point)) for point in check.points]
            # Without a flipped label there is nothing to say of flipped labels.
            assert all(each is not None for each in kept[-2:]), check
            assert all(each["seeds"] == found["seeds"]["evidence"] for each in kept if each is not None), check

"""The page of evidence judges by the rule that it states."""

import pytest


@pytest.mark.parametrize(
    ("mean", "low", "high", "p", "options", "expected"),
    [
        (0.1, 0.05, 0.15, 0.001, {}, "holds"),
        (-0.1, -0.15, -0.05, 0.001, {}, "does not hold"),
        (-0.1, -0.15, -0.05, 0.001, {"sign": -1, "figure": "kl_to_initial"}, "holds"),
        (0.1, -0.05, 0.25, 0.5, {}, "undecided"),
        (0.005, -0.005, 0.015, 0.5, {}, "does not hold"),
        (0.005, -0.005, 0.015, 0.001, {"margin": True}, "holds"),
        (-0.05, -0.06, -0.04, 0.001, {"margin": True}, "does not hold"),
        (-0.01, -0.05, 0.03, 0.5, {"margin": True}, "undecided"),
    ],
)
def test_verdicts_follow_the_rule_on_the_page(script, mean, low, high, p, options, expected):
    names = script("evidence")
    check = names["Check"]("a claim", "ours", "theirs", **options)
    assert names["verdict"](check, {"mean": mean, "low": low, "high": high, "p_holm": p}) == expected

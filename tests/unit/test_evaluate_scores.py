"""Agreement of margins with annotated scores, figures of margins, and the held-out pairs an iteration is judged on."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sera_core.catalog import load_catalog
from sera_core.errors import ConfigError
from sera_core.evaluate.policy import of_margins, of_pairs
from sera_core.evaluate.scores import score_correlation, score_gaps
from sera_core.held_out import prefixes_of
from sera_core.plan import make_plan
from sera_core.records import Pair
from sera_core.testing.samples import response


def pair(chosen, rejected):
    return Pair("p", response(0, "blue", score=chosen), response(0, "red", score=rejected), "data", "")


def test_gaps_are_chosen_minus_rejected_and_nan_where_a_score_is_missing():
    gaps = score_gaps([pair(4.5, 1.0), pair(None, 1.0), pair(1.0, None), pair(-1.0, 2.0)])
    assert gaps.tolist() == pytest.approx([3.5, math.nan, math.nan, -3.0], nan_ok=True)
    assert gaps.dtype == np.float64


def test_the_three_correlations_by_hand():
    # Ranks of values 1 2 3 4, of gaps 1 3 2 4: Spearman 1 - 6 * 2 / (4 * 15) = 0.8; of six couples one is reversed,
    # so Kendall (5 - 1) / 6. Pearson: deviations -1.5 -.5 .5 1.5 and -7 -1 -3 11 -> (10.5 + .5 - 1.5 + 16.5) / sqrt(5 * 180).
    found = score_correlation(np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 8.0, 6.0, 20.0]))
    assert found["spearman"] == pytest.approx(0.8)
    assert found["kendall"] == pytest.approx(4 / 6)
    assert found["pearson"] == pytest.approx(26 / math.sqrt(5 * 180))
    assert found["n"] == 4


def test_ties_share_ranks():
    values, gaps = np.array([1.0, 1.0, 2.0, 3.0, 3.0]), np.array([0.0, 1.0, 1.0, 1.0, 5.0])
    found = score_correlation(values, gaps)
    assert found["pearson"] == pytest.approx(stats.pearsonr(values, gaps).statistic)
    assert found["spearman"] == pytest.approx(stats.pearsonr(stats.rankdata(values), stats.rankdata(gaps)).statistic)
    couples = [(i, j) for i in range(5) for j in range(i)]
    signs = [(np.sign(values[i] - values[j]), np.sign(gaps[i] - gaps[j])) for i, j in couples]
    tau = sum(a * b for a, b in signs) / math.sqrt(sum(a != 0 for a, _ in signs) * sum(b != 0 for _, b in signs))
    assert found["kendall"] == pytest.approx(tau)


def test_only_scored_pairs_count():
    gaps = np.array([1.0, math.nan, 2.0, 4.0])
    found = score_correlation(np.array([1.0, -100.0, 2.0, 3.0]), gaps)
    assert found == score_correlation(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0]))
    assert found["n"] == 3


@pytest.mark.parametrize(
    ("values", "gaps"),
    [([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]), ([1.0, 2.0], [1.0, 2.0])],
    ids=["constant values", "constant gaps", "two pairs"],
)
def test_what_does_not_exist_is_none(values, gaps):
    found = score_correlation(np.array(values), np.array(gaps))
    assert found == {"pearson": None, "spearman": None, "kendall": None, "n": len(values)}


def test_without_scores_there_is_no_correlation():
    assert score_correlation(np.array([1.0, 2.0, 3.0]), np.full(3, math.nan)) is None
    assert score_correlation(np.zeros(0), np.zeros(0)) is None


distinct = st.lists(st.integers(-50, 50), min_size=3, max_size=12, unique=True).map(
    lambda xs: np.array(xs, dtype=float)
)


@given(distinct)
def test_ranks_ignore_what_keeps_the_order_and_a_reversal_turns_the_sign(gaps):
    found, turned = score_correlation(np.cbrt(gaps), gaps), score_correlation(-np.cbrt(gaps), gaps)
    assert found["spearman"] == pytest.approx(1)
    assert found["kendall"] == pytest.approx(1)
    for name in ("pearson", "spearman", "kendall"):
        assert turned[name] == pytest.approx(-found[name])


def test_figures_of_margins():
    margins = np.array([2.0, -1.0, 0.0, 3.0])
    assert of_margins(margins) == {"margin_mean": 1.0, "accuracy": 2.5 / 4}
    assert of_margins(np.zeros(0)) == {"margin_mean": None, "accuracy": None}
    assert of_pairs(margins, np.array([-1.0, 0.0, 0.0, 3.0])) == {**of_margins(margins), "chosen_logp_drift": 0.5}


def plan(*transforms, **evaluation):
    user = {"name": "x", "objective": {"transforms": list(transforms)}, "evaluation": evaluation}
    return make_plan(user, load_catalog())


def refine(strength, prefix):
    return {"name": "self_refinement", "strength": strength, "prefix": prefix}


@pytest.mark.skipif("self_refinement" not in load_catalog().names("transform"), reason="needs sera-plugin-srdpo")
def test_prefixes_are_those_asked_for_then_those_of_transforms_each_once():
    made = plan(refine(0.1, "b"), refine(0.0, "c"), refine(0.2, "a"), refine(0.3, "d"), prefixes=["z", "a"])
    assert prefixes_of(made, made.iterations[0]) == ("z", "a", "b", "d")


@pytest.mark.parametrize("prefix", ["", "  ", "{prompt}", "{prompt} or {prompt}"])
def test_a_prefix_that_cannot_be_used_is_refused_at_plan_time(prefix):
    with pytest.raises(ConfigError, match=r"evaluation\.prefixes holds"):
        plan(prefixes=["good", prefix])


def test_a_prefix_given_twice_is_refused():
    with pytest.raises(ConfigError, match="twice"):
        plan(prefixes=["good", "good"])

"""Comparisons: p values against scipy, Holm by hand, power against statsmodels, and verdicts in words."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.power import TTestPower

from sera_core.errors import ConfigError
from sera_core.statistics.compare import compare, holm, judged, p_text, p_value, power, seeds_needed, verdict_of
from sera_core.statistics.intervals import ALPHA, WHOLE, Interval, mean_interval
from sera_core.statistics.metrics import GOLD, KL, METRICS, WIN_RATE, metric_of


def whole(*values):
    return {seed: {WHOLE: value} for seed, value in enumerate(values)}


def difference(mean, se=1.0, *, shared=0.0, seeds=4):
    return Interval(mean, mean - 1, mean + 1, se, seeds - 1, shared, seeds, 9, "seeds and prompts")


def test_p_is_that_of_scipys_paired_test():
    ours, theirs = [0.61, 0.72, 0.70, 0.66], [0.60, 0.66, 0.69, 0.61]
    (found,) = compare({"a": whole(*ours), "b": whole(*theirs)}, {"a": "b"}, WIN_RATE)
    assert found.p == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    assert found.p_holm == found.p
    assert (found.arm, found.baseline, found.metric, found.comparisons) == ("a", "b", "win_rate_vs_initial", 1)


def test_holm_by_hand():
    # Ascending: 3 x 0.01, 2 x 0.03, 1 x 0.04 raised to the one before; order as given.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []


def test_the_correction_counts_every_arm_of_the_ablation():
    near, far = whole(0.60, 0.71, 0.62), whole(0.65, 0.76, 0.671)
    alone = compare({"a": far, "b": near}, {"a": "b"}, WIN_RATE)[0]
    among = compare({"a": far, "b": near, "c": near, "d": near}, {"a": "b", "c": "b", "d": "b"}, WIN_RATE)
    assert alone.verdict == "better"
    assert among[0].p == alone.p
    assert among[0].p_holm == pytest.approx(3 * alone.p)
    assert [each.comparisons for each in among] == [3, 3, 3]


def test_identical_arms_differ_by_exactly_nothing():
    arm = {seed: {f"{i}": float(i % 2) for i in range(20)} for seed in range(3)}
    (found,) = compare({"a": arm, "b": arm}, {"a": "b"}, WIN_RATE)
    assert (found.difference.mean, found.difference.se, found.p, found.p_holm) == (0, 0, 1, 1)
    assert (found.verdict, found.seeds_needed, found.needed_shown) == ("not distinguishable", None, "-")


def test_one_seed_gives_no_verdict():
    arms = {"a": {0: {"x": 1.0, "y": 1.0, "z": 0.9}}, "b": {0: {"x": 0.0, "y": 0.1, "z": 0.0}}}
    (found,) = compare(arms, {"a": "b"}, WIN_RATE)
    assert (found.verdict, found.p, found.p_holm, found.comparisons) == ("one seed", None, None, 0)
    assert found.difference.covers == "prompts"


def test_arms_without_a_common_seed_are_not_compared():
    one, other = {0: {"x": 1.0}}, {1: {"x": 1.0}}
    found = compare({"a": one, "b": other, "e": {}}, {"a": "b", "c": "a", "b": "e", "c ": "d"}, GOLD)
    assert [each.verdict for each in found] == ["not compared"] * 4
    assert [each.reason for each in found] == [
        "no seed in common",
        "no finished run of c has gold",
        "no finished run of e has gold",
        "no finished run of either has gold",
    ]


@pytest.mark.parametrize(
    ("mean", "p", "direction", "verdict", "seeds"),
    [
        (0.1, 0.01, 1, "better", 4),
        (-0.1, 0.01, 1, "worse", 4),
        (0.1, 0.01, -1, "worse", 4),
        (-0.1, 0.01, -1, "better", 4),
        (0.1, 0.01, 0, "higher", 4),
        (-0.1, 0.01, 0, "lower", 4),
        (0.1, 0.05, 1, "not distinguishable", 4),
        (0.1, None, 1, "one seed", 1),
        (0.1, None, 1, "nothing varies", 4),
    ],
)
def test_verdicts(mean, p, direction, verdict, seeds):
    assert verdict_of(difference(mean, seeds=seeds), p, direction) == verdict


@given(st.lists(st.floats(-1, 1).map(lambda x: round(x, 2)), min_size=2, max_size=6))
def test_p_and_interval_agree(values):
    found = mean_interval(whole(*values))
    p = p_value(found)
    if p is None:
        assert (found.low, found.high) == (None, None)
        assert len(set(values)) == 1
    elif abs(p - ALPHA) > 1e-9:
        assert (p < ALPHA) == (found.low > 0 or found.high < 0)


@pytest.mark.parametrize(("mean", "spread"), [(0.05, 0.04), (0.01, 0.04), (-0.02, 0.01), (0.002, 0.02)])
def test_seeds_needed_are_those_of_statsmodels(mean, spread):
    wanted = TTestPower().solve_power(abs(mean) / spread, alpha=0.05, power=0.8)
    assert seeds_needed(difference(mean, spread / 2)) == math.ceil(wanted)


def test_a_difference_without_spread_says_nothing_of_seeds():
    assert seeds_needed(difference(0.1, 0.0)) is None
    assert p_value(difference(0.1, 0.0)) is None
    assert p_value(difference(0.0, 0.0)) == 1
    assert seeds_needed(difference(1e9, 1e-9)) == 2


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({0: {"x": 1.0}, 1: {"y": 1.0}}, {0: {"x": 0.0}, 1: {"y": 0.0}}),
        # The gaps differ by rounding.
        (whole(0.9, 0.8), whole(0.8, 0.7)),
        (
            {seed: dict.fromkeys("abcd", 1.5) for seed in range(3)},
            {seed: dict.fromkeys("abcd", 0.5) for seed in range(3)},
        ),
    ],
)
def test_outcomes_that_do_not_vary_make_nothing_certain(ours, theirs):
    (found,) = compare({"a": ours, "b": theirs}, {"a": "b"}, WIN_RATE)
    gap = found.difference
    assert gap.mean > 0
    assert (gap.low, gap.high, gap.se, found.p, found.p_holm) == (None,) * 5
    assert (found.verdict, found.seeds_needed, found.needed_shown, found.comparisons) == (
        "nothing varies",
        None,
        "-",
        0,
    )


def test_seeds_needed_are_those_of_a_verdict_among_as_many():
    gaps = {"a": difference(0.05, 0.02), "c": difference(0.03, 0.02)}
    found = judged(gaps, dict.fromkeys(gaps), dict.fromkeys(gaps, "b"), WIN_RATE)
    wanted = [TTestPower().solve_power(gap / 0.04, alpha=0.05 / 2, power=0.8) for gap in (0.05, 0.03)]
    assert [each.seeds_needed for each in found] == [math.ceil(n) for n in wanted]
    assert seeds_needed(gaps["a"], 2) > seeds_needed(gaps["a"]) == seeds_needed(gaps["a"], 1)


@given(st.floats(0.5, 200), st.integers(2, 6), st.integers(1, 40))
def test_no_seeds_are_called_for_that_gave_no_verdict(distance, seeds, comparisons):
    gap = difference(distance, 1.0, seeds=seeds)
    needed = seeds_needed(gap, comparisons)
    if needed is not None and needed <= seeds:
        assert comparisons * p_value(gap) < ALPHA


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("level", [0.025, 0.025 / 40])
def test_far_out_the_power_is_that_of_simulated_tests(seeds, level):
    distance = 4 * stats.t.isf(level, seeds - 1) / seeds
    draws = np.random.default_rng(0).normal(size=(20_000, seeds)) + distance / seeds**0.5
    seen = stats.ttest_1samp(draws, 0, axis=1, alternative="greater").pvalue < level
    assert power(distance, seeds, level) == pytest.approx(seen.mean(), abs=0.015)


def test_no_number_of_seeds_makes_up_for_too_few_shared_prompts():
    assert seeds_needed(difference(0.05, 0.04)) < seeds_needed(difference(0.05, 0.04, shared=0.01**2))
    # Of the prompts alone the standard error is already half the difference.
    assert seeds_needed(difference(0.05, 0.04, shared=0.025**2)) is None
    assert seeds_needed(difference(1e-6, 1.0)) is None


def test_of_a_metric_without_direction_arms_are_higher_or_lower():
    (found,) = compare({"a": whole(5.0, 5.1, 5.2), "b": whole(1.0, 1.0, 1.1)}, {"a": "b"}, KL)
    assert found.verdict == "higher"
    assert (WIN_RATE.direction, GOLD.direction, KL.direction) == (1, 1, 0)


def test_metrics_go_by_their_name_in_reports():
    assert all(metric_of(name).name == name for name in METRICS)
    with pytest.raises(ConfigError, match=r"No metric 'win_rate_initial'.*Did you mean 'win_rate_vs_initial'"):
        metric_of("win_rate_initial")


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_promised():
    generator = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        arms = {name: whole(*generator.normal(size=3)) for name in "abcd"}
        found = compare(arms, {"a": "d", "b": "d", "c": "d"}, WIN_RATE)
        alarms += any(each.verdict != "not distinguishable" for each in found)
    # Holm keeps the chance of any alarm below one in 20; three standard errors above.
    assert alarms / 200 < 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5


@pytest.mark.parametrize("mean", [1e-3, 0.1, 3.0, 7.7, 40.0, 1e6])
@pytest.mark.parametrize("shared", [0.0, 1e-8])
def test_no_effect_size_is_beyond_the_power_function(mean, shared):
    needed = seeds_needed(difference(mean, 0.5, shared=shared))
    assert needed is None if mean == 1e-3 else needed >= 2
    assert seeds_needed(difference(3.0, 0.5)) == 4


def test_figures_of_a_comparison_as_tables_show_them():
    assert (p_text(0.0004), p_text(0.0304), p_text(None)) == ("<0.001", "0.030", "-")
    tiny = {seed: {f"{i}": 0.5 + 1e-7 * (seed == 0) for i in range(3)} for seed in range(3)}
    noisy = {seed: {f"{i}": 0.5 + (seed - 1) * 0.1 for i in range(3)} for seed in range(3)}
    (small,) = compare({"a": tiny, "b": noisy}, {"a": "b"}, WIN_RATE)
    assert (small.seeds_needed, small.needed_shown) == (None, ">10000")

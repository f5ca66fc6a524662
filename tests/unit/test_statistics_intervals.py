"""Intervals over seeds and prompts: against scipy and statsmodels, by hand, and where chance is all there is."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.proportion import proportion_confint

from sera_core.statistics.compare import p_value
from sera_core.statistics.intervals import (
    ALPHA,
    SHARE,
    WHOLE,
    interval,
    least_step,
    matrix,
    mean_interval,
    paired_interval,
)
from sera_core.statistics.intervals import prompt_covariance as covariance_of
from sera_core.statistics.metrics import KL, LENGTH


def outcomes(values, prefix=None):
    """Outcomes of a table [seed, prompt]; with a prefix each seed has prompts of its own."""
    return {
        seed: {f"{'' if prefix is None else f'{prefix}{seed}-'}{i:03d}": float(v) for i, v in enumerate(row)}
        for seed, row in enumerate(values)
    }


def crossed(seeds=4, prompts=30, between=0.2, shared=0.5, draw=0):
    generator = np.random.default_rng(draw)
    noise = generator.normal(size=(seeds, prompts))
    return between * generator.normal(size=(seeds, 1)) + shared * generator.normal(size=prompts) + noise


def test_seeds_with_prompts_of_their_own_give_students_interval_of_their_means():
    values = crossed(between=1.0)
    found = mean_interval(outcomes(values, "own"))
    wanted = stats.ttest_1samp(values.mean(axis=1), 0).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(wanted.low), pytest.approx(wanted.high))
    assert found.se == pytest.approx(stats.sem(values.mean(axis=1)))
    assert (found.df, found.shared, found.seeds, found.prompts) == (3, 0, 4, 120)
    assert found.covers == "seeds and prompts"


def test_runs_without_evidence_by_prompt_give_students_interval_and_say_so():
    found = mean_interval({0: {WHOLE: 0.5}, 1: {WHOLE: 0.6}, 2: {WHOLE: 0.7}})
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    assert (found.low, found.high) == (pytest.approx(0.6 - half), pytest.approx(0.6 + half))
    assert (found.covers, found.prompts, found.shared) == ("seeds", 0, 0)


def test_one_run_without_evidence_by_prompt_has_no_interval():
    found = mean_interval({7: {WHOLE: 0.5}})
    assert (found.mean, found.low, found.high, found.se, found.covers) == (0.5, None, None, None, "nothing")


def test_one_seed_gives_students_interval_over_prompts_and_says_so():
    values = crossed(seeds=1)
    found = mean_interval(outcomes(values))
    wanted = stats.ttest_1samp(values[0], 0).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(wanted.low), pytest.approx(wanted.high))
    assert (found.covers, found.seeds) == ("prompts", 1)


def test_shared_prompts_count_once_as_in_a_two_way_analysis_of_variance():
    values = crossed()
    long = pd.DataFrame(values).melt(ignore_index=False, var_name="prompt").reset_index(names="seed")
    squares = anova_lm(ols("value ~ C(seed) + C(prompt)", long).fit())["mean_sq"]
    found = mean_interval(outcomes(values))
    wanted = squares["C(seed)"] + squares["C(prompt)"] - squares["Residual"]
    assert found.se**2 == pytest.approx(wanted / values.size)
    assert found.shared == pytest.approx((squares["C(prompt)"] - squares["Residual"]) / values.size)
    assert found.df > 3
    assert found.prompts == 30


@pytest.mark.parametrize("missing", [0, 12])
def test_the_covariance_is_that_of_a_bootstrap_over_prompts(missing):
    values = crossed(seeds=2, prompts=40, shared=2.0)
    values[1, :missing] = np.nan
    drawn = np.random.default_rng(1).integers(40, size=(20_000, 40))
    means = np.nanmean(values[:, drawn], axis=2)
    # A bootstrap's own variance lacks n / (n - 1).
    assert covariance_of(values) == pytest.approx(np.cov(means) * 40 / 39, rel=0.06)


def test_the_standard_error_of_one_seed_is_that_of_scipys_bootstrap():
    values = crossed(seeds=1, prompts=200)
    wanted = stats.bootstrap((values[0],), np.mean, n_resamples=4000, rng=0).standard_error
    assert interval(values).se == pytest.approx(wanted, rel=0.04)


def test_seeds_alike_by_luck_are_not_believed():
    values = np.tile([0.0, 1.0], (3, 50))
    found = mean_interval(outcomes(values, "own"), SHARE)
    # Each seed's mean has the variance 0.25 / 99; of 3 seeds one draw in 40 has a 40th of that or less.
    variance = 0.25 / 99 * stats.chi2.ppf(1 / 40, 2) / 2
    assert found.se == pytest.approx((variance / 3) ** 0.5)
    assert found.high - 0.5 == pytest.approx(stats.t.ppf(0.975, 2) * found.se)


def test_where_every_prompt_is_won_another_may_still_be_lost():
    found = mean_interval(outcomes(np.ones((2, 30)), "own"), SHARE)
    assert (found.low, found.high) == pytest.approx(proportion_confint(60, 60, 0.05, "wilson"))


@pytest.mark.parametrize(("seeds", "won"), [(2, 1.0), (3, 1.0), (2, 0.0), (3, 0.5)])
def test_a_share_of_one_prompt_in_each_seed_is_not_certain(seeds, won):
    found = mean_interval(outcomes(np.full((seeds, 1), won), "own"), SHARE)
    assert (found.low, found.high) == pytest.approx(proportion_confint(seeds * won, seeds, 0.05, "wilson"))
    # The seeds may have the one prompt in common.
    found = mean_interval(outcomes(np.full((seeds, 1), won)), SHARE)
    assert (found.low, found.high) == pytest.approx(proportion_confint(won, 1, 0.05, "wilson"))


@pytest.mark.parametrize("share", [0.0, 0.9, 1.0])
def test_equal_shares_of_whole_runs_have_no_interval(share):
    found = mean_interval({seed: {WHOLE: share} for seed in range(3)}, SHARE)
    assert (found.mean, found.low, found.high, found.se, found.df) == (pytest.approx(share), None, None, None, None)
    assert found.covers == "nothing"


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_outcomes_that_do_not_vary_have_no_interval_unless_they_are_nothing(seeds):
    found = mean_interval(outcomes(np.full((seeds, 4), 1.5), "own"))
    assert (found.mean, found.low, found.high, found.covers) == (1.5, None, None, "nothing")
    found = mean_interval(outcomes(np.zeros((seeds, 4)), "own"))
    assert (found.mean, found.low, found.high, found.se) == (0, 0, 0, 0)


def test_means_of_few_prompts_that_agree_are_taken_to_be_one_outcome_apart():
    values = np.array([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0], [0.5, 1.0, 0.0]]) + 1
    found = mean_interval(outcomes(values, "own"))
    # Were one 0.5 of one seed a 1, that seed's mean would be a sixth of 1 larger than the others'.
    assert found.se**2 == pytest.approx(np.var([0, 0, 1 / 6], ddof=1) / 3)
    assert least_step(values) == pytest.approx(1 / 6)
    assert least_step(values * 0 + 0.1 + 1e-17 * values) == 0


def test_figures_from_zero_up_have_intervals_from_zero_up():
    draws = np.array([[9.0, 0.0, 1.0], [14.0, 30.0, 0.0]])
    assert mean_interval(outcomes(draws, "own")).low < 0
    for metric in (KL, LENGTH):
        found = mean_interval(outcomes(draws, "own"), metric.bounds)
        assert found.low == 0 < found.high
    # Seeds are not shares: all alike, they have no interval.
    assert mean_interval(outcomes(np.full((2, 3), 7.0), "own"), KL.bounds).low is None
    # An estimate below 0 stays within its interval.
    found = mean_interval({0: {WHOLE: -0.30}, 1: {WHOLE: -0.31}}, KL.bounds)
    assert found.low == found.mean < found.high < 0
    assert paired_interval(outcomes(draws, "own"), outcomes(2 * draws, "own"), KL.bounds).low < 0


def test_intervals_end_at_the_bounds_of_the_metric():
    values = np.array([[1.0] * 19 + [0.0], [1.0] * 12 + [0.0] * 8])
    assert mean_interval(outcomes(values, "own")).high > 1
    assert mean_interval(outcomes(values, "own"), SHARE).high == 1


def test_without_outcomes_there_is_no_interval():
    assert mean_interval({}) is None
    assert mean_interval({0: {}}) is None
    assert paired_interval({0: {"a": 1.0}}, {1: {"a": 1.0}}) is None


def test_prompts_that_one_arm_lacks_do_not_count_in_a_difference():
    ours = {0: {"a": 1.0, "b": 0.5, "c": 0.0}, 1: {"a": 1.0, "b": 1.0}, 2: {"a": 0.0}}
    theirs = {0: {"a": 0.5, "b": 0.5}, 1: {"a": 0.0, "b": 1.0, "d": 1.0}}
    found = paired_interval(ours, theirs, SHARE)
    assert found.mean == pytest.approx((0.25 + 0.5) / 2)
    assert (found.seeds, found.prompts) == (2, 2)


def test_seeds_without_a_common_prompt_give_the_difference_of_their_means():
    found = paired_interval({0: {"a": 1.0, "b": 0.0}, 1: {"a": 1.0}}, {0: {WHOLE: 0.25}, 1: {"c": 0.5}})
    assert (found.mean, found.covers) == (0.375, "seeds")


def test_a_difference_may_reach_beyond_the_bounds_of_its_sides():
    ours, theirs = outcomes(np.zeros((3, 20)), "own"), outcomes(np.ones((3, 20)), "own")
    assert paired_interval(ours, theirs, SHARE).mean == -1


tables = (
    st.integers(2, 4)
    .flatmap(
        lambda seeds: st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=seeds, max_size=seeds), min_size=2)
    )
    .map(lambda rows: np.array(rows).T)
)


@given(tables)
def test_an_arm_does_not_differ_from_itself(values):
    found = paired_interval(outcomes(values), outcomes(values), SHARE)
    assert (found.mean, found.low, found.high, found.se) == (0, 0, 0, 0)


@given(tables, st.randoms(use_true_random=False))
def test_the_order_of_seeds_and_prompts_does_not_matter(values, chance):
    given_order = outcomes(values)
    seeds = chance.sample(sorted(given_order), len(given_order))
    mixed = {seed: dict(chance.sample(sorted(given_order[seed].items()), values.shape[1])) for seed in seeds}
    assert mean_interval(mixed, SHARE) == mean_interval(given_order, SHARE)


@given(tables)
def test_a_difference_turned_round_changes_its_sign_alone(values):
    other = outcomes(values[::-1])
    there, back = (paired_interval(*sides) for sides in ((outcomes(values), other), (other, outcomes(values))))
    assert there.mean == pytest.approx(-back.mean)
    assert (there.low, there.high) == (pytest.approx(-back.high), pytest.approx(-back.low))


def test_the_matrix_has_nan_where_a_seed_lacks_a_prompt():
    found = matrix({5: {"b": 2.0, "a": 1.0}, 3: {"c": 3.0}, 4: {}})
    assert str(found.tolist()) == "[[nan, nan, 3.0], [1.0, 2.0, nan]]"


@pytest.mark.parametrize("shared", [0.0, 0.7])
@pytest.mark.parametrize("between", [0.0, 0.5])
@pytest.mark.parametrize("seeds", [3, 10])
def test_the_interval_covers_what_it_says(seeds, between, shared):
    held = []
    for draw in range(600):
        found = interval(crossed(seeds, 40, between, shared, draw))
        held.append(found.low <= 0 <= found.high)
    # Three standard errors of a share of 600 on either side of 93 and 97 per cent.
    assert 0.93 - 0.027 < np.mean(held) < 0.97 + 0.021


@pytest.mark.parametrize(("seeds", "prompts"), [(2, 1), (2, 2), (2, 4), (3, 1), (3, 2), (3, 4), (3, 8)])
def test_few_outcomes_do_not_raise_false_alarms(seeds, prompts):
    generator, alarms, draws = np.random.default_rng([seeds, prompts]), 0, 500
    for _ in range(draws):
        gap = generator.choice([-1.0, -0.5, 0.0, 0.5, 1.0], size=(seeds, prompts), p=[0.2, 0.2, 0.2, 0.2, 0.2])
        p = p_value(mean_interval(outcomes(gap, "own"), (-1.0, 1.0)))
        alarms += p is not None and p < ALPHA
    # Three standard errors of a share of 500 above 5 per cent.
    assert alarms / draws < 0.05 + 0.029

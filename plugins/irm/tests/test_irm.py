import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sera_core.catalog import load_catalog
from sera_core.errors import ConfigError
from sera_core.protocols import Needs
from sera_core.records import IterateLogps, ScoringLogps
from sera_core.testing import contract_checks
from sera_plugin_irm import ImplicitRewardMargin

NEW = IterateLogps(2, policy=np.array([-4.0, -9.0, -2.0]), reference=np.array([-6.0, -8.0, -2.0]))
OLD = IterateLogps(1, policy=np.array([-6.0, -8.0, -2.0]), reference=np.array([-5.0, -10.0, -4.0]))
LENGTHS = np.array([2, 3, 4], dtype=np.int64)


def score(scorer, *iterates):
    return scorer.scores((), ScoringLogps(LENGTHS, iterates))


def test_one_iterate_gives_its_log_ratio():
    assert score(ImplicitRewardMargin(), NEW).tolist() == [2.0, -1.0, 0.0]


def test_two_iterates_are_mixed():
    # log-ratios: newest [2, -1, 0], older [-1, 2, 2]
    expected = [0.7 * 2 + 0.3 * -1, 0.7 * -1 + 0.3 * 2, 0.3 * 2]
    np.testing.assert_allclose(score(ImplicitRewardMargin(gamma=0.3), NEW, OLD), expected, rtol=1e-15)


def test_margin_is_the_difference_of_scores():
    first, second, _ = score(ImplicitRewardMargin(gamma=0.5), NEW, OLD)
    margin_new = (-4 - -6) - (-9 - -8)
    margin_old = (-6 - -5) - (-8 - -10)
    assert first - second == pytest.approx(0.5 * margin_new + 0.5 * margin_old)


def test_length_normalised_reward_has_no_reference():
    scorer = ImplicitRewardMargin(gamma=0.25, reward="length_normalised")
    np.testing.assert_allclose(score(scorer, NEW), [-2.0, -3.0, -0.5])
    np.testing.assert_allclose(
        score(scorer, NEW, OLD), [0.75 * -2 + 0.25 * -3, 0.75 * -3 + 0.25 * -8 / 3, -0.5], rtol=1e-15
    )
    blind = IterateLogps(2, NEW.policy, np.full(3, np.nan))
    assert score(scorer, blind).tobytes() == score(scorer, NEW).tobytes()


def test_an_empty_response_is_finite():
    logps = ScoringLogps(np.array([0]), (IterateLogps(1, np.zeros(1), np.zeros(1)),))
    assert ImplicitRewardMargin(reward="length_normalised").scores((), logps).tolist() == [0.0]


@pytest.mark.parametrize("reward", ["log_ratio", "length_normalised"])
def test_gamma_0_is_no_ensemble_bit_for_bit(reward):
    scorer = ImplicitRewardMargin(gamma=0.0, reward=reward)
    assert score(scorer, NEW, OLD).tobytes() == score(scorer, NEW).tobytes()


@pytest.mark.parametrize("reward", ["log_ratio", "length_normalised"])
def test_one_iterate_is_no_ensemble_bit_for_bit(reward):
    plain = score(ImplicitRewardMargin(gamma=0.0, reward=reward), NEW)
    assert score(ImplicitRewardMargin(gamma=0.3, reward=reward), NEW).tobytes() == plain.tobytes()


def test_gamma_1_is_the_older_iterate():
    np.testing.assert_array_equal(
        score(ImplicitRewardMargin(gamma=1.0), NEW, OLD), score(ImplicitRewardMargin(gamma=0.0), OLD)
    )


def test_needs_as_much_history_as_it_reads():
    assert ImplicitRewardMargin().needs == Needs(history=2, reference=True)
    assert ImplicitRewardMargin(gamma=0.0).needs == Needs(history=1, reference=True)


def test_no_iterate_says_when_selection_can_start():
    with pytest.raises(ConfigError, match=r"offline\.select_from: 2"):
        score(ImplicitRewardMargin())


@pytest.mark.parametrize("gamma", [-0.1, 1.5, float("nan"), True, "x"])
def test_bad_gamma_is_named(gamma):
    with pytest.raises(ConfigError, match="option gamma must be a number from 0"):
        ImplicitRewardMargin(gamma=gamma)


def test_bad_reward_is_named():
    with pytest.raises(ConfigError, match="'log_ratio' or 'length_normalised'; got 'ratio'"):
        ImplicitRewardMargin(reward="ratio")


sums = st.lists(st.floats(-500, 0), min_size=4, max_size=4).map(np.array)


@given(st.floats(0, 1), sums, sums, sums, sums)
def test_ensemble_lies_between_its_members(gamma, policy_new, reference_new, policy_old, reference_old):
    logps = ScoringLogps(
        np.arange(1, 5), (IterateLogps(2, policy_new, reference_new), IterateLogps(1, policy_old, reference_old))
    )
    mixed = ImplicitRewardMargin(gamma=gamma).scores((), logps)
    members = np.stack([policy_new - reference_new, policy_old - reference_old])
    assert (mixed >= members.min(0) - 1e-9).all()
    assert (mixed <= members.max(0) + 1e-9).all()


@pytest.mark.parametrize("check", contract_checks(load_catalog(), distribution="sera-plugin-irm"), ids=str)
def test_contract(check):
    check()

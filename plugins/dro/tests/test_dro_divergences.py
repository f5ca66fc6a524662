"""Weights of the divergence balls, of CVaR and of Dr. DPO."""

import math

import pytest
import torch
from dro_batches import numbers, stats_of
from hypothesis import given, settings
from hypothesis import strategies as st

from sera_core.errors import ModelError
from sera_core.protocols import Needs, Weighing
from sera_plugin_dro import KL, ChiSquare, CVaR, DrDPO, Schedule, WassersteinDiscrete

LOSSES = [0.0, math.log(2), math.log(5)]
XI = [math.exp(-loss) for loss in LOSSES]
UP = [KL(), KL(temperature=0.5), ChiSquare(), CVaR(), WassersteinDiscrete(radius=0.2)]
ALL = [*UP, DrDPO()]


def by_hand(values):
    return torch.tensor(values, dtype=torch.float64)


def test_kl_at_a_temperature():
    # w ~ exp(loss): 1, 2, 5 of 8
    weighed = KL(temperature=1.0).weigh(stats_of(XI))
    torch.testing.assert_close(weighed.weights, 3 * by_hand([1, 2, 5]) / 8)
    assert numbers(weighed.metrics)["empirical_loss"] == pytest.approx(math.log(10) / 3)


def test_kl_radius_is_the_divergence():
    weighed = KL(radius=0.1).weigh(stats_of(XI))
    w = weighed.weights
    assert float((w * w.log()).mean()) == pytest.approx(0.1, rel=1e-6)
    temperature = numbers(weighed.metrics)["temperature"]
    torch.testing.assert_close(w, KL(temperature=temperature).weights(stats_of(XI)))
    assert numbers(weighed.metrics)["worst_case_loss"] == pytest.approx(float((w * by_hand(LOSSES)).mean()))


def test_chi_square_in_a_small_ball_is_linear():
    weighed = ChiSquare(radius=0.04).weigh(stats_of(XI))
    losses = by_hand(LOSSES)
    expected = 1 + 0.2 * (losses - losses.mean()) / losses.std(correction=0)
    torch.testing.assert_close(weighed.weights, expected)
    assert float(3 / weighed.weights.square().mean()) == pytest.approx(3 / 1.04)
    assert numbers(weighed.metrics)["worst_case_loss"] == pytest.approx(float((expected * losses).mean()))


def test_cvar_takes_the_worst_share():
    torch.testing.assert_close(CVaR(level=0.5).weights(stats_of(XI)), by_hand([0, 1, 2]))
    assert numbers(CVaR(level=1 / 3).weigh(stats_of(XI)).metrics)["worst_case_loss"] == pytest.approx(math.log(5))


def test_dr_dpo_weighs_by_likelihood():
    # exp(-loss): 1, 1/2, 1/5 of 1.7
    weighed = DrDPO(temperature=1.0).weigh(stats_of(XI))
    torch.testing.assert_close(weighed.weights, 3 * by_hand([1, 0.5, 0.2]) / 1.7)
    assert numbers(weighed.metrics) == pytest.approx(
        {"worst_case_loss": -math.log(1.7 / 3), "empirical_loss": math.log(10) / 3}
    )


def test_discrete_moves_mass_between_pairs():
    # Confidences 1, 1/2, 1/5. Gain per cost: from 1 to 1/5 log 5 / 0.8, from 1/2 to 1/5 log 2.5 / 0.3: the latter is
    # larger. Budget 3 x 0.05 moves half of the second pair's weight to the third.
    weighed = WassersteinDiscrete(radius=0.05).weigh(stats_of(XI))
    torch.testing.assert_close(weighed.weights, by_hand([1, 0.5, 1.5]))
    assert numbers(weighed.metrics)["dual_price"] == pytest.approx(math.log(2.5) / 0.3)
    capped = WassersteinDiscrete(radius=10.0, cap=1.5).weights(stats_of(XI))
    torch.testing.assert_close(capped, by_hand([0, 1.5, 1.5]), rtol=1e-7, atol=1e-7)


def test_a_cap_shares_among_pairs_that_are_alike():
    scheme = WassersteinDiscrete(radius=0.1, cap=2.0)
    torch.testing.assert_close(scheme.weights(stats_of([0.5] * 6)), torch.ones(6).double())
    weights = scheme.weights(stats_of([0.2, 0.8, 0.2, 0.8, 0.8]))
    assert weights[0] == weights[2]
    assert weights[1] == weights[3] == weights[4]
    # 5 x 0.1 of budget moves 0.5 / 0.6 of a pair's weight to the two hard ones.
    torch.testing.assert_close(weights[0], by_hand(1 + 0.5 / 0.6 / 2))


def test_discrete_distances_in_margins():
    stats = stats_of([0.2, 0.5, 0.8])
    near = WassersteinDiscrete(radius=0.1, cost="margin").weigh(stats)
    # |logit .5 - logit .2| = log 4 a unit: 0.3 of the budget moves 0.3 / log 4 of a pair at the largest gain per cost.
    gains = {
        (1, 0): math.log(2.5) / math.log(4),
        (2, 1): math.log(1.6) / math.log(4),
        (2, 0): math.log(4) / math.log(16),
    }
    assert numbers(near.metrics)["dual_price"] == pytest.approx(max(gains.values()))
    share = 0.3 / math.log(4)
    torch.testing.assert_close(near.weights, by_hand([1 + share, 1 - share, 1]))


@pytest.mark.parametrize("scheme", ALL, ids=str)
def test_hard_pairs_weigh_more_but_for_dr_dpo(scheme):
    stats = stats_of([0.95, 0.8, 0.6, 0.3, 0.1])
    weighed = scheme.weigh(stats)
    towards_hard = float((weighed.weights * stats.losses).mean() - stats.losses.mean())
    worst, mean = numbers(weighed.metrics)["worst_case_loss"], numbers(weighed.metrics)["empirical_loss"]
    assert (towards_hard < -0.01, worst < mean) == (isinstance(scheme, DrDPO),) * 2
    assert (towards_hard > 0.01, worst > mean) == (not isinstance(scheme, DrDPO),) * 2
    if not isinstance(scheme, WassersteinDiscrete):
        assert weighed.weights.tolist() == sorted(weighed.weights.tolist(), reverse=isinstance(scheme, DrDPO))


@pytest.mark.parametrize(
    "scheme", [KL(radius=0.0), ChiSquare(0.0), CVaR(1.0), DrDPO(None), WassersteinDiscrete(0.0)], ids=str
)
def test_neutral_settings_give_ones_exactly(scheme):
    stats = stats_of([0.1, 0.1, 0.7, 0.9, 1.0], dtype=torch.float32)
    assert scheme == type(scheme).neutral()
    assert torch.equal(scheme.weights(stats), torch.ones(5))


@pytest.mark.parametrize("scheme", ALL, ids=str)
def test_equal_losses_weigh_the_same(scheme):
    torch.testing.assert_close(scheme.weights(stats_of([0.3] * 4)), torch.ones(4).double())
    torch.testing.assert_close(scheme.weights(stats_of([0.3])), torch.ones(1).double())


@pytest.mark.parametrize("scheme", ALL, ids=str)
@settings(max_examples=30)
@given(xi=st.lists(st.floats(0, 1), min_size=1, max_size=12), random=st.randoms(use_true_random=False))
def test_weights_are_valid_whatever_the_batch(scheme, xi, random):
    weighed = scheme.weigh(stats_of(xi, dtype=torch.float32))
    assert weighed.weights.dtype == torch.float32
    assert (weighed.weights >= 0).all()
    assert float(weighed.weights.mean()) == pytest.approx(1, rel=1e-5)
    assert all(map(math.isfinite, numbers(weighed.metrics).values()))
    order = list(range(len(xi)))
    random.shuffle(order)
    shuffled = scheme.weights(stats_of([xi[i] for i in order], dtype=torch.float32))
    torch.testing.assert_close(shuffled, weighed.weights[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", ALL, ids=str)
def test_weigh_and_weights_agree_without_gradient(scheme):
    stats = stats_of(XI)
    for values in (stats.margins, stats.confidences, stats.losses):
        values.requires_grad_()
    weighed = scheme.weigh(stats)
    assert isinstance(scheme, Weighing)
    assert torch.equal(weighed.weights, scheme.weights(stats))
    assert not weighed.weights.requires_grad
    assert scheme.needs == Needs(whole_batch=True)


@pytest.mark.parametrize("factory", [KL, ChiSquare, WassersteinDiscrete])
def test_radii_follow_their_schedule(factory):
    scheme = factory(radius=Schedule(0.0, 0.2, until=0.5))
    assert torch.equal(scheme.weights(stats_of(XI)), torch.ones(3).double())
    late = scheme.weigh(stats_of(XI, progress=0.25))
    assert late.metrics["radius"] == pytest.approx(0.1)
    assert torch.equal(late.weights, factory(radius=0.1).weights(stats_of(XI)))


@pytest.mark.parametrize("scheme", ALL, ids=str)
def test_a_loss_that_is_no_number_is_refused(scheme):
    with pytest.raises(ModelError, match=r"reweighter '\w+': losses: .*Lower training\.learning_rate"):
        scheme.weights(stats_of([0.5, 0.6], losses=[1.0, math.nan]))

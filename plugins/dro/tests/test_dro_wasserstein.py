"""Weights of the Wasserstein worst case: by hand, by identity, by finite differences."""

import math

import pytest
import torch
from dro_batches import numbers, stats_of
from hypothesis import given, settings
from hypothesis import strategies as st

from sera_core.errors import ModelError
from sera_core.protocols import Needs, Weighing
from sera_core.records import BatchStats
from sera_plugin_dro import Schedule, Wasserstein

# Budget 3 x 0.1: the first pair moves whole (cost 0.1), half of the second (cost 0.4), nothing of the third.
XI = [0.2, 0.5, 0.8]
HAND = {"radius": 0.1, "support": (0.1, 1.0)}
PRICE = math.log(0.5 / 0.1) / 0.4
BY_HAND = {
    "envelope": [PRICE * 0.2, 0.5 + 0.5 * PRICE * 0.5, 1.0],
    "expectation": [0.2 / 0.1, 0.5 + 0.5 * 0.5 / 0.1, 1.0],
    "literal": [0.2 / 0.1, 1 + 0.5 / 0.1, 1.0],
}
EVERY_WAY = [{"gradient": gradient, "method": method} for gradient in BY_HAND for method in ("exact", "program")]
confidences = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gradient", BY_HAND)
def test_weights_by_hand(gradient, dtype):
    weights = Wasserstein(**HAND, gradient=gradient).weights(stats_of(XI, dtype=dtype))
    assert weights.dtype == dtype
    torch.testing.assert_close(weights, torch.tensor(BY_HAND[gradient], dtype=dtype), rtol=1e-6, atol=0)


def test_metrics_by_hand():
    weighed = Wasserstein(**HAND).weigh(stats_of(XI))
    losses = [-math.log(0.1), 0.5 * -math.log(0.5) + 0.5 * -math.log(0.1), -math.log(0.8)]
    assert numbers(weighed.metrics) == pytest.approx(
        {
            "radius": 0.1,
            "mass_moved": 0.5,
            "dual_price": PRICE,
            "worst_case_loss": sum(losses) / 3,
            "empirical_loss": -math.log(0.2 * 0.5 * 0.8) / 3,
        }
    )


@pytest.mark.parametrize("gradient", BY_HAND)
def test_a_program_of_many_tangents_agrees_with_the_closed_form(gradient):
    weighed = Wasserstein(**HAND, gradient=gradient, method="program", pieces=32).weigh(stats_of(XI))
    torch.testing.assert_close(weighed.weights, torch.tensor(BY_HAND[gradient]).double(), rtol=0.01, atol=0)
    exact = numbers(Wasserstein(**HAND).weigh(stats_of(XI)).metrics)
    found = numbers(weighed.metrics)
    assert exact["worst_case_loss"] - 2e-3 < found["worst_case_loss"] < exact["worst_case_loss"]
    assert found["mass_moved"] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("how", EVERY_WAY, ids=str)
def test_radius_0_gives_ones_exactly(how):
    stats = stats_of([0.0, 0.003, 0.01, 0.3, 0.3, 0.9, 1.0], dtype=torch.float32)
    weighed = Wasserstein(radius=0.0, **how).weigh(stats)
    assert torch.equal(weighed.weights, torch.ones(7))
    assert numbers(weighed.metrics)["mass_moved"] == 0
    assert numbers(weighed.metrics)["worst_case_loss"] == numbers(weighed.metrics)["empirical_loss"]


def test_a_schedule_that_starts_at_0_begins_with_the_base_method():
    grown = Wasserstein(radius=Schedule(0.0, 0.1), support=(0.1, 1.0))
    assert torch.equal(grown.weights(stats_of(XI, progress=0.0)), torch.ones(3).double())
    assert torch.equal(grown.weights(stats_of(XI, progress=1.0)), Wasserstein(**HAND).weights(stats_of(XI)))
    assert grown.weigh(stats_of(XI, progress=0.25)).metrics["radius"] == pytest.approx(0.025)


def test_equal_confidences_share():
    weights = Wasserstein(**HAND).weights(stats_of([0.5] * 4))
    share = 0.1 / 0.4
    torch.testing.assert_close(weights, torch.full((4,), 1 - share + share * PRICE * 0.5).double())


@pytest.mark.parametrize("gradient", BY_HAND)
@pytest.mark.parametrize("xi", [[0.5] * 16, [0.01] * 4 + [0.3] * 3 + [0.9]], ids=str)
def test_the_program_shares_among_equals_as_the_closed_form_does(gradient, xi):
    weights = Wasserstein(gradient=gradient, method="program").weights(stats_of(xi))
    torch.testing.assert_close(weights, Wasserstein(gradient=gradient).weights(stats_of(xi)), rtol=2e-3, atol=0)


def test_a_batch_of_one():
    weights = Wasserstein(**HAND).weights(stats_of([0.5]))
    torch.testing.assert_close(weights, torch.tensor([0.75 + 0.25 * PRICE * 0.5]).double())


@pytest.mark.parametrize("gradient", BY_HAND)
def test_confidences_of_exactly_0_and_1_count_as_the_ends(gradient):
    scheme = Wasserstein(radius=0.05, gradient=gradient)
    outside = scheme.weights(stats_of([0.0, 0.004, 0.5, 1.0], dtype=torch.float32))
    at_ends = scheme.weights(stats_of([0.01, 0.01, 0.5, 1.0], dtype=torch.float32))
    torch.testing.assert_close(outside, at_ends, rtol=1e-6, atol=0)
    assert torch.isfinite(outside).all()
    assert outside[3] == 1


def test_a_radius_beyond_the_support_weighs_nothing():
    assert torch.equal(Wasserstein(radius=2.0).weights(stats_of(XI)), torch.zeros(3).double())
    assert torch.equal(Wasserstein(radius=2.0, normalise=True).weights(stats_of(XI)), torch.zeros(3).double())


@given(confidences, st.floats(0, 0.6), st.sampled_from(sorted(BY_HAND)))
def test_normalised_weights_have_mean_1_or_0(xi, radius, gradient):
    plain = Wasserstein(radius=radius, gradient=gradient).weights(stats_of(xi))
    mean = float(Wasserstein(radius=radius, gradient=gradient, normalise=True).weights(stats_of(xi)).mean())
    assert mean == pytest.approx(1.0 if plain.any() else 0.0)


def test_normalising_ones_leaves_them_exact():
    assert torch.equal(Wasserstein(radius=0.0, normalise=True).weights(stats_of([0.1] * 7)), torch.ones(7).double())


@given(confidences, st.floats(0, 0.6), st.sampled_from(sorted(BY_HAND)), st.randoms(use_true_random=False))
def test_the_order_of_pairs_does_not_matter(xi, radius, gradient, random):
    order = list(range(len(xi)))
    random.shuffle(order)
    scheme = Wasserstein(radius=radius, gradient=gradient)
    straight = scheme.weights(stats_of(xi))
    torch.testing.assert_close(scheme.weights(stats_of([xi[i] for i in order])), straight[order], rtol=1e-7, atol=1e-9)


@given(confidences, st.floats(0, 0.6), st.sampled_from(sorted(BY_HAND)))
def test_weights_are_finite_and_not_negative(xi, radius, gradient):
    weighed = Wasserstein(radius=radius, gradient=gradient).weigh(stats_of(xi, dtype=torch.float32))
    assert torch.isfinite(weighed.weights).all()
    assert (weighed.weights >= 0).all()
    assert all(map(math.isfinite, numbers(weighed.metrics).values()))


@settings(max_examples=50)
@given(st.lists(st.floats(0.02, 0.98), min_size=1, max_size=8, unique=True), st.floats(0.005, 0.3))
def test_envelope_weights_are_the_derivative_of_the_worst_case_loss(xi, radius):
    scheme, step = Wasserstein(radius=radius), 1e-6
    weights = scheme.weights(stats_of(xi))

    def worst(values):
        return float(scheme.weigh(stats_of(values)).metrics["worst_case_loss"])

    for i, weight in enumerate(weights.tolist()):
        up, down = ([*xi[:i], xi[i] + sign * step, *xi[i + 1 :]] for sign in (1, -1))
        slopes = (worst(up) - worst(xi)) / step, (worst(xi) - worst(down)) / step
        if abs(slopes[0] - slopes[1]) < 1e-3 * max(map(abs, slopes)) + 1e-4:  # no kink here
            assert weight * -1 / xi[i] / len(xi) == pytest.approx(sum(slopes) / 2, rel=5e-3, abs=1e-3)


def test_weigh_and_weights_agree_and_carry_no_gradient():
    stats = stats_of(XI)
    stats.confidences.requires_grad_()
    scheme = Wasserstein(**HAND)
    assert isinstance(scheme, Weighing)
    weighed = scheme.weigh(stats)
    assert torch.equal(weighed.weights, scheme.weights(stats))
    assert not weighed.weights.requires_grad
    assert not any(isinstance(m, torch.Tensor) and m.requires_grad for m in weighed.metrics.values())


def test_the_statistics_are_left_as_they_were():
    stats = stats_of([0.0, 0.5, 1.0])
    Wasserstein(radius=0.1).weights(stats)
    assert stats.confidences.tolist() == [0.0, 0.5, 1.0]


def test_a_bootstrap_radius_follows_the_batch():
    def radius(xi, level=0.9):
        return float(Wasserstein(radius_from=level).weigh(stats_of(xi)).metrics["radius"])

    wide = torch.linspace(0.05, 0.95, 64).tolist()
    assert 0.01 < radius(wide) < 0.1
    assert radius(wide) > radius(torch.linspace(0.45, 0.55, 64).tolist())
    assert radius(wide, 0.5) < radius(wide, 0.99)
    assert radius(wide) == radius(wide[::-1])
    assert torch.equal(Wasserstein(radius_from=0.9).weights(stats_of([0.3] * 5)), torch.ones(5).double())


@pytest.mark.parametrize(
    "how", [{"gradient": g} for g in BY_HAND] + [{"normalise": True}, {"radius_from": 0.9}], ids=str
)
def test_nothing_waits_for_the_device(how):
    # The meta device has no values: whatever looks at one fails.
    empty = torch.empty(5, device="meta")
    weighed = Wasserstein(**how).weigh(BatchStats(empty, empty, empty, empty, progress=0.5))
    assert weighed.weights.shape == (5,)
    assert weighed.weights.is_meta


def test_a_confidence_that_is_no_number_is_refused():
    with pytest.raises(ModelError, match=r"reweighter 'wasserstein': xi: .*nan.*Lower training\.learning_rate"):
        Wasserstein().weights(stats_of([0.5, math.nan]))


def test_needs():
    assert Wasserstein().needs == Needs(whole_batch=True)
    assert Wasserstein(scope="dataset", refresh=0.5).needs == Needs(whole_batch=True, dataset_every=0.5)


def test_groups_that_hold_everything_are_no_groups():
    grouped = Wasserstein(**HAND, scope="dataset", group_size=3).weigh(stats_of(XI))
    torch.testing.assert_close(grouped.weights, Wasserstein(**HAND).weights(stats_of(XI)))
    assert numbers(grouped.metrics)["grouping_error"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("how", EVERY_WAY, ids=str)
def test_groups_fall_short_of_the_whole_by_the_grouping_error(how):
    stats = stats_of(torch.linspace(0.05, 0.95, 23, dtype=torch.float64))
    whole = numbers(Wasserstein(scope="dataset", **how).weigh(stats).metrics)
    found = Wasserstein(scope="dataset", group_size=6, **how).weigh(stats)
    metrics = numbers(found.metrics)
    assert "grouping_error" not in whole
    assert 0 <= metrics["grouping_error"] < 0.02
    gap = whole["worst_case_loss"] - metrics["worst_case_loss"]
    assert metrics["grouping_error"] == pytest.approx(gap, abs=1e-6)
    assert metrics["empirical_loss"] == pytest.approx(whole["empirical_loss"], abs=1e-9)
    # 23 pairs in groups of at most 6 are 4 groups, dealt in turn by rank.
    first = Wasserstein(**how).weights(stats_of(stats.confidences[0::4]))
    torch.testing.assert_close(found.weights[0::4], first)

from functools import partial

import numpy as np
import pytest
import torch

from sera_solvers import InputError, grouped, wasserstein

SOLVE = partial(wasserstein, radius=0.03)


def sample(count, seed=0):
    return np.random.default_rng(seed).uniform(0.01, 1.0, count)


def test_one_group_is_the_whole():
    xi = sample(20)
    case, whole = grouped(SOLVE, xi, 20), SOLVE(xi)
    assert case.groups == 1
    assert case.value == pytest.approx(whole.value, rel=1e-14)
    assert case.error == pytest.approx(0, abs=1e-14)
    assert case.dual_price == pytest.approx(whole.dual_price, rel=1e-12)
    np.testing.assert_allclose(case.weights, whole.weights, rtol=1e-12)


def test_groups_by_hand():
    # Dealt by rank: .1 and .3 to one group, .2 and .4 to the other.
    case = grouped(SOLVE, [0.4, 0.1, 0.3, 0.2], 2)
    one, two = SOLVE([0.1, 0.3]), SOLVE([0.2, 0.4])
    assert case.groups == 2
    assert case.value == pytest.approx((one.value + two.value) / 2, rel=1e-14)
    np.testing.assert_allclose(case.weights, [two.weights[1], one.weights[0], one.weights[1], two.weights[0]])
    np.testing.assert_allclose(case.moved, [two.moved[1], one.moved[0], one.moved[1], two.moved[0]])
    assert case.error == pytest.approx(SOLVE([0.1, 0.2, 0.3, 0.4]).value - case.value, rel=1e-12)


@pytest.mark.parametrize(("count", "size"), [(50, 7), (257, 16), (1000, 64)])
def test_never_above_the_optimum_and_close_to_it(count, size):
    case = grouped(SOLVE, sample(count), size)
    assert case.groups == -(-count // size)
    assert case.error >= -1e-12
    assert case.error < 0.1 * (case.optimum - -np.log(sample(count)).mean())


def test_the_order_does_not_matter_not_even_among_equals():
    rng = np.random.default_rng(1)
    xi = rng.choice(sample(12), 60)
    order = rng.permutation(60)
    one, two = grouped(SOLVE, xi, 8), grouped(SOLVE, xi[order], 8)
    assert one.value == pytest.approx(two.value, rel=1e-13)
    np.testing.assert_allclose(two.weights, one.weights[order], rtol=1e-12)
    np.testing.assert_allclose(two.moved, one.moved[order], rtol=1e-12, atol=1e-14)


def test_radius_zero_keeps_weights_exactly_one():
    xi = np.random.default_rng(1).choice(sample(12), 60)
    case = grouped(partial(wasserstein, radius=0.0), xi, 8)
    assert (case.weights == 1).all()
    assert case.error == pytest.approx(0, abs=1e-14)


def test_tensors():
    xi = sample(40)
    one, two = grouped(SOLVE, xi, 16), grouped(SOLVE, torch.tensor(xi), 16)
    assert two.weights.dtype is torch.float64
    np.testing.assert_allclose(two.weights.numpy(), one.weights, rtol=1e-12)
    assert float(two.value) == pytest.approx(one.value, rel=1e-13)
    meta = grouped(SOLVE, torch.empty(40, device="meta"), 16)
    assert meta.weights.shape == (40,)


def test_a_known_whole_is_not_solved_again():
    xi, calls = sample(10), []

    def solve(atoms):
        calls.append(len(atoms))
        return SOLVE(atoms)

    assert grouped(solve, xi, 5, whole=SOLVE(xi)).optimum == SOLVE(xi).value
    assert calls == [5, 5]
    grouped(solve, xi, 5)
    assert calls == [5, 5, 5, 5, 10]
    with pytest.raises(InputError, match="whole: expected a worst case of 10 atoms, got one of 3"):
        grouped(solve, xi, 5, whole=SOLVE(xi[:3]))


@pytest.mark.parametrize("size", [0, -1, 2.5, True, None])
def test_bad_group_size(size):
    with pytest.raises(InputError, match="group_size: expected an integer >= 1"):
        grouped(SOLVE, sample(4), size)

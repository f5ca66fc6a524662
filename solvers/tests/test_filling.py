import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from sera_solvers.filling import fill

SLOPES = np.array([2.0, 3.0, 2.0, -1.0, 1.0, -np.inf])
COSTS = np.array([1.0, 1.0, 2.0, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("budget", "fractions", "price"),
    [
        (0.0, [0, 0, 0, 0, 0, 0], 3),
        (0.25, [0, 0.25, 0, 0, 0, 0], 3),
        (1.0, [0, 1, 0, 0, 0, 0], 2),
        (2.5, [0.5, 1, 0.5, 0, 0, 0], 2),
        (4.0, [1, 1, 1, 0, 0, 0], 1),
        (5.0, [1, 1, 1, 0, 1, 0], 0),
        (9.0, [1, 1, 1, 0, 1, 0], 0),
    ],
)
@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_by_hand(make, budget, fractions, price):
    got, paid = fill(make(SLOPES), make(COSTS), budget)
    np.testing.assert_array_equal(np.asarray(got), fractions)
    assert float(paid) == price


def test_segments_without_cost_come_along_only_when_something_is_bought():
    slopes, costs = np.array([5.0, 3.0, 1.0]), np.array([0.0, 1.0, 0.0])
    np.testing.assert_array_equal(fill(slopes, costs, 0.0)[0], [0, 0, 0])
    np.testing.assert_array_equal(fill(slopes, costs, 0.5)[0], [1, 0.5, 0])
    np.testing.assert_array_equal(fill(slopes, costs, 2.0)[0], [1, 1, 1])
    np.testing.assert_array_equal(fill(slopes[:1], costs[:1], 1.0)[0], [1])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.floats(0, 2))
def test_optimal_and_fair(seed, count, share):
    rng = np.random.default_rng(seed)
    slopes, costs = rng.integers(-2, 5, count).astype(float), rng.integers(0, 4, count).astype(float)
    budget = share * costs.sum()
    fractions, price = fill(slopes, costs, budget)
    assert fractions.min() >= 0
    assert fractions.max() <= 1
    assert fractions @ costs <= budget * (1 + 1e-12)
    optimum = -linprog(-slopes * costs, A_ub=costs[None], b_ub=[budget], bounds=(0, 1), method="highs").fun
    assert fractions @ (slopes * costs) == pytest.approx(optimum, rel=1e-9, abs=1e-9)
    dual = price * budget + (costs * (slopes - price)).clip(0).sum()
    assert dual == pytest.approx(optimum, rel=1e-9, abs=1e-9)
    order = rng.permutation(count)
    np.testing.assert_allclose(fill(slopes[order], costs[order], budget)[0], fractions[order], rtol=0, atol=1e-12)
    for slope in np.unique(slopes):
        assert len(np.unique(fractions[slopes == slope])) == 1


def test_budget_may_be_a_tensor_and_nothing_needs_values():
    got, price = fill(torch.tensor(SLOPES), torch.tensor(COSTS), torch.tensor(2.5, dtype=torch.float64))
    np.testing.assert_array_equal(got.numpy(), [0.5, 1, 0.5, 0, 0, 0])
    assert price == 2
    meta = torch.empty(5, device="meta", dtype=torch.float64)
    got, price = fill(meta, meta, torch.empty((), device="meta", dtype=torch.float64))
    assert got.shape == (5,)
    assert price.shape == ()

"""Mass moved between existing atoms, against linear programs, dual bounds and values worked by hand."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from sera_solvers.discrete import wasserstein_discrete as solve
from sera_solvers.errors import InputError, SolveError

SCALES = (1e-3, 1.0, 1e4)


def problems(count, seed, largest=12):
    """Losses with ties, constants, negatives and float32; costs on a line, arbitrary or equal; a radius."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        size = int(rng.integers(1, largest + 1)) if i % 8 else 1
        losses = rng.normal(size=size) * SCALES[i % 3] + rng.choice([0.0, 5.0, -30.0])
        losses = np.round(losses, 1) if i % 4 == 1 else losses
        losses = np.full(size, losses[0]) if i % 10 == 3 else losses
        losses = losses.astype(np.float32) if i % 5 == 2 else losses
        place = rng.uniform(size=size)
        costs = [np.abs(place[:, None] - place), rng.uniform(0.1, 2, size=(size, size)), np.ones((size, size))][i % 3]
        costs = costs * rng.choice([1e-4, 1.0, 1e3])
        np.fill_diagonal(costs, 0)
        yield losses, costs, costs.max() * float(rng.choice([0.0, 1e-9, 1.0, 50.0, *rng.uniform(0, 0.6, size=4)]))


def program(losses, costs, radius, cap=None):
    """Optimal value and weights by HiGHS on the dense program in pi, in units of the losses' range."""
    x, size = np.float64(losses), len(losses)
    top, spread, unit = x.max(), np.ptp(x) or 1.0, costs.max() or 1.0
    limit, bound = (costs / unit).reshape(1, -1), [size * radius / unit]
    if cap is not None:
        limit, bound = np.vstack((limit, np.tile(np.eye(size), size))), bound + [cap] * size
    rows = np.kron(np.eye(size), np.ones(size))
    solved = linprog(np.tile((top - x) / spread, size), limit, bound, rows, np.ones(size), method="highs-ds")
    assert solved.status == 0
    return top - spread * solved.fun / size, solved.x.reshape(size, size).sum(0)


def transport(weights, costs):
    """Least mean cost of moving weight 1 on every atom to the weights."""
    size, unit = len(weights), costs.max() or 1.0
    rows = np.vstack((np.kron(np.eye(size), np.ones(size)), np.tile(np.eye(size), size)))
    solved = linprog(costs.ravel() / unit, A_eq=rows, b_eq=np.concatenate((np.ones(size), weights)), method="highs-ds")
    return unit * solved.fun / size


def test_agrees_with_the_linear_program_and_meets_its_dual_bound() -> None:
    for losses, costs, radius in problems(300, seed=1):
        result, x = solve(losses, costs, radius), np.float64(losses)
        spread = np.ptp(x) or 1.0
        value, _ = program(losses, costs, radius)
        assert abs(result.value - value) <= 1e-6 * spread + 1e-12 * abs(value)
        bound = radius * result.dual_price + (x[None, :] - result.dual_price * costs).max(1).mean()
        assert abs(bound - result.value) <= 1e-12 * (spread + np.abs(x).max())
        assert result.weights.min() >= 0
        assert result.weights.mean() == pytest.approx(1, rel=1e-12)
        assert transport(result.weights, costs) <= radius + 1e-8 * costs.max()
        assert result.value == pytest.approx((result.weights * x).mean(), rel=1e-12, abs=1e-12 * np.abs(x).max())


def test_large_problems_agree_with_the_linear_program() -> None:
    for losses, costs, radius in problems(8, seed=2, largest=40):
        value, _ = program(losses, costs, radius)
        assert abs(solve(losses, costs, radius).value - value) <= 1e-6 * (np.ptp(losses) or 1) + 1e-12 * abs(value)


def test_a_unique_optimum_has_the_weights_of_the_linear_program() -> None:
    rng = np.random.default_rng(3)
    for _ in range(25):
        losses, costs = rng.normal(size=9), rng.uniform(0.1, 2, size=(9, 9))
        np.fill_diagonal(costs, 0)
        np.testing.assert_allclose(solve(losses, costs, 0.2).weights, program(losses, costs, 0.2)[1], atol=1e-8)


def test_the_cap_agrees_with_the_linear_program() -> None:
    for i, (losses, costs, radius) in enumerate(problems(80, seed=4)):
        cap = (1.0, 1.3, 2.5, 100.0)[i % 4]
        result, value = solve(losses, costs, radius, cap=cap), program(losses, costs, radius, cap)[0]
        assert abs(result.value - value) <= 1e-6 * (np.ptp(losses) or 1) + 1e-12 * abs(value)
        assert -1e-12 <= result.weights.min() <= result.weights.max() <= cap + 1e-8
        assert result.weights.mean() == pytest.approx(1, rel=1e-12)
        assert transport(result.weights, costs) <= radius + 1e-8 * costs.max()
        if cap == 1.0 or radius == 0:
            np.testing.assert_allclose(result.weights, 1, atol=1e-9)
        if cap == 100.0:
            assert result.value == pytest.approx(
                solve(losses, costs, radius).value, rel=1e-9, abs=1e-6 * float(np.ptp(losses))
            )


LINE = np.abs(np.subtract.outer([0.0, 1.0, 3.0], [0.0, 1.0, 3.0]))


def test_values_worked_by_hand() -> None:
    # gains per cost: 0 -> 1: 2, 0 -> 3: 4/3, 1 -> 3: 1. After 0 -> 1 the hull continues 0 -> 3 and 1 -> 3 at slope 1.
    first = solve([0.0, 2.0, 4.0], LINE, 0.25)  # 3/4 of atom 0 moves to 1
    np.testing.assert_allclose(first.weights, [0.25, 1.75, 1.0], rtol=1e-14)
    assert (first.value, first.dual_price) == (pytest.approx(2.5), pytest.approx(2.0))
    second = solve([0.0, 2.0, 4.0], LINE, 1.0)  # budget 3: 1 for 0 -> 1, the other 2 spread over two moves of cost 2
    np.testing.assert_allclose(second.weights, [0, 1, 2], atol=1e-14)
    assert (second.value, second.dual_price) == (pytest.approx(10 / 3), pytest.approx(1.0))
    capped = solve([0.0, 2.0, 4.0], LINE, 1.0, cap=1.5)
    np.testing.assert_allclose(capped.weights, [0, 1.5, 1.5], atol=1e-9)
    assert capped.value == pytest.approx(3.0)
    assert "wasserstein_discrete" in str(capped)
    everything = solve([0.0, 2.0, 4.0], LINE, 5 / 3)
    np.testing.assert_allclose(everything.weights, [0, 0, 3], atol=1e-14)
    assert (everything.value, everything.dual_price) == (4.0, 0.0)


def test_radius_zero_gives_exactly_ones() -> None:
    for losses, costs, _ in problems(60, seed=5):
        for cap in (None, 2.0):
            result = solve(losses, costs, 0, cap=cap)
            assert (result.weights == 1).all()
            assert result.value == result.empirical_value
    result = solve([0.0, 2.0, 4.0], LINE, 0, cap=2)
    assert (result.weights == 1).all()
    assert result.value == result.empirical_value == 2.0


def test_constant_losses_and_a_single_atom_keep_weight_one() -> None:
    for radius in (0.0, 0.5, 1e9):
        for losses, costs in (([0.3], [[0.0]]), ([0.3] * 3, LINE)):
            np.testing.assert_array_equal(solve(losses, costs, radius).weights, np.ones(len(losses)))
            np.testing.assert_array_equal(solve(losses, costs, radius, cap=1.5).weights, np.ones(len(losses)))


def test_equal_destinations_share_and_order_does_not_matter() -> None:
    star = np.array([[0.0, 1, 1, 1], [1, 0, 2, 2], [1, 2, 0, 2], [1, 2, 2, 0]])
    np.testing.assert_allclose(solve([0.0, 1.0, 1.0, 1.0], star, 0.125).weights, [0.5, 7 / 6, 7 / 6, 7 / 6])
    rng = np.random.default_rng(6)
    for losses, costs, radius in problems(80, seed=7):
        order = rng.permutation(len(losses))
        again = solve(losses[order], costs[np.ix_(order, order)], radius)
        np.testing.assert_allclose(again.weights, solve(losses, costs, radius).weights[order], rtol=1e-9, atol=1e-9)


def test_duplicates_exchange_mass_at_no_cost() -> None:
    free = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    np.testing.assert_array_equal(solve([1.0, 1.0, 0.0], free, 0).weights, [1, 1, 1])
    np.testing.assert_allclose(solve([1.0, 1.0, 0.0], free, 0.1).weights, [1.15, 1.15, 0.7])
    np.testing.assert_array_equal(solve([1.0, 2.0, 0.0], free, 0).weights, [0, 2, 1])  # a larger loss for free


def test_value_increases_with_the_radius_at_the_rate_of_the_price() -> None:
    rng = np.random.default_rng(8)
    losses, costs = rng.normal(size=12), rng.uniform(0.1, 2, size=(12, 12))
    np.fill_diagonal(costs, 0)
    results = [solve(losses, costs, radius) for radius in np.linspace(0, 2, 60)]
    assert (np.diff([r.value for r in results]) >= -1e-14).all()
    for cap, radius in ((None, 0.1), (3.0, 0.1), (3.0, 1e-4), (None, 0.0)):
        here, there = (solve(losses, costs, r, cap=cap) for r in (radius, radius + 1e-6))
        assert here.dual_price == pytest.approx((there.value - here.value) / 1e-6, rel=1e-6)


def test_weights_are_the_gradient_of_the_value() -> None:
    rng, step = np.random.default_rng(9), 1e-6
    losses, costs = rng.normal(size=9), rng.uniform(0.1, 2, size=(9, 9))
    np.fill_diagonal(costs, 0)
    for i, weight in enumerate(solve(losses, costs, 0.2).weights):
        bump = step * (np.arange(9) == i)
        change = solve(losses + bump, costs, 0.2).value - solve(losses - bump, costs, 0.2).value
        assert weight == pytest.approx(9 * change / (2 * step), abs=1e-6)


def test_torch_agrees() -> None:
    for i, (losses, costs, radius) in enumerate(problems(60, seed=10)):
        cap = 1.5 if i % 6 == 0 else None
        result = solve(losses, costs, radius, cap=cap)
        other = solve(torch.tensor(losses), torch.tensor(costs), radius, cap=cap)
        assert other.weights.dtype == other.value.dtype == other.dual_price.dtype == torch.float64
        np.testing.assert_allclose(other.weights.numpy(), result.weights, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(float(other.value), result.value, rtol=1e-12)
        np.testing.assert_allclose(float(other.dual_price), result.dual_price, rtol=1e-12)


def test_nothing_waits_for_an_accelerator_without_a_cap() -> None:
    result = solve(torch.empty(6, device="meta"), torch.empty(6, 6, device="meta"), 0.3)
    assert result.weights.shape == (6,)
    assert result.weights.device.type == "meta"


def test_bad_input_poisons_results_where_it_cannot_be_looked_at(monkeypatch) -> None:
    for module in ("arrays", "discrete"):
        monkeypatch.setattr(f"sera_solvers.{module}.on_host", lambda x: not isinstance(x, torch.Tensor))
    losses, costs = torch.tensor([0.0, 2.0, 4.0]), torch.tensor(LINE)
    for bad in (
        solve(torch.tensor([0.0, math.nan, 1.0]), costs, 0.2),
        solve(torch.tensor([0.0, math.inf, 1.0]), costs, 0.2),
        solve(losses, -costs, 0.2),
        solve(losses, costs + torch.eye(3), 0.2),
        solve(losses, costs, torch.tensor(-1.0)),
    ):
        for x in (bad.weights, bad.value, bad.dual_price):
            assert x.isnan().all()
    np.testing.assert_allclose(solve(losses, costs, 0.25).weights.numpy(), [0.25, 1.75, 1.0], rtol=1e-12)


X = [0.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(solve, X, LINE, -1), r"radius: .* >= 0.* got -1"),
        (partial(solve, X, LINE, math.inf), r"radius: .* finite, got inf"),
        (partial(solve, X, LINE, 1, cap=0.5), r"cap: .* >= 1, got 0.5"),
        (partial(solve, X, LINE[:2], 1), r"costs: expected shape \(3, 3\).* got shape \(2, 3\)"),
        (partial(solve, X, LINE[0], 1), r"costs: expected a 2-D array"),
        (partial(solve, X, -LINE, 1), r"costs: expected values in \[0, .* at index 0, 1"),
        (partial(solve, X, LINE + np.eye(3), 1), r"costs: expected a zero diagonal.* got 1.0 at index 0, 0"),
        (partial(solve, X, LINE * math.nan, 1), r"costs: .* got nan at index 0, 0"),
        (partial(solve, X, torch.tensor(LINE), 1), r"costs: expected the kind of array .* ndarray, got Tensor"),
        (partial(solve, [0, math.inf, 1], LINE, 1), r"losses: expected finite values, got inf at index 1"),
        (partial(solve, [], LINE, 1), r"losses: .* shape \(0,\)"),
    ],
)
def test_errors_name_the_argument(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_an_unsolved_program_is_an_error(monkeypatch) -> None:
    failed = type("Failed", (), {"status": 4, "message": "numerical difficulties"})
    monkeypatch.setattr("scipy.optimize.linprog", lambda *args, **kwargs: failed)
    with pytest.raises(SolveError, match=r"HiGHS: .* 'numerical difficulties'.* leave out cap"):
        solve(X, LINE, 1, cap=2)

"""Divergence balls, CVaR and Dr. DPO against convex programs, dual bounds and values worked by hand."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, linprog

from sera_solvers.ambiguity import chi_square, cvar, dr_dpo, kl
from sera_solvers.errors import InputError
from sera_solvers.result import WorstWeights

SCALES = (1e-3, 1.0, 1e4)
RADII = (0.0, 1e-9, 1e-4, 0.05, 0.5, 2.0, 1e3)
SETS = {
    "kl": lambda x, r: kl(x, radius=r),
    "kl_penalty": lambda x, r: kl(x, temperature=0.1 + r),
    "dr_dpo": lambda x, r: dr_dpo(x, 0.1 + r),
    "chi_square": chi_square,
    "cvar": lambda x, r: cvar(x, 1 / (1 + r)),
}
every_set = pytest.mark.parametrize("solve", SETS.values(), ids=SETS)


def problems(count, seed):
    """Losses of 1 to 40 atoms, with ties, constants, negatives, float32 and large values; and a radius."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        size = int(rng.integers(1, 41)) if i % 8 else 1
        losses = rng.normal(size=size) * SCALES[i % 3] + rng.choice([0.0, 5.0, -30.0])
        if i % 4 == 1:
            losses = np.round(losses, 1 if i % 3 else 4)
        if i % 10 == 3:
            losses = np.full(size, losses[0])
        if i % 5 == 2:
            losses = losses.astype(np.float32)
        yield losses, RADII[i % len(RADII)] if i % 2 else float(rng.uniform(0, 3))


def scaled(losses):
    """Losses in [-1, 0] in units of their range: convex programs are solved there."""
    x = np.asarray(losses, dtype=np.float64)
    spread = np.ptp(x) or 1.0
    return (x - x.max()) / spread, x.max(), spread


def conic(losses, radius, kind):
    """Optimal value and weights by CLARABEL; `radius` is the temperature for the penalised kinds."""
    import cvxpy as cp

    x, top, spread = scaled(losses)
    unit = math.sqrt(min(radius, 1)) if kind == "chi_square" else 1.0  # of the deviations d = w - 1, for conditioning
    d = cp.Variable(len(x))
    divergence = cp.sum(cp.kl_div(1 + d, np.ones(len(x)))) / len(x)
    rows, objective = [cp.sum(d) == 0, d >= -1 / unit], d @ x / len(x)
    if kind == "kl":
        rows.append(divergence <= radius)
    elif kind == "chi_square":
        rows.append(cp.norm(d) <= math.sqrt(radius * len(x)) / unit)
    else:
        sign = 1 if kind == "kl_penalty" else -1
        objective = objective - sign * radius / spread * divergence
    problem = cp.Problem(cp.Minimize(objective) if kind == "dr_dpo" else cp.Maximize(objective), rows)
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-8, tol_gap_rel=1e-8, tol_feas=1e-8)
    assert problem.status == "optimal"
    return top + spread * (x.mean() + unit * problem.value), 1 + unit * d.value


def assert_distribution(result: WorstWeights, losses) -> None:
    assert result.weights.shape == (len(losses),)
    assert result.weights.min() >= 0
    assert result.weights.mean() == pytest.approx(1, rel=1e-12)
    assert result.empirical_value == pytest.approx(np.mean(np.float64(losses)), rel=1e-12)
    assert result.status == "optimal"
    assert not result.weights.flags.writeable


@pytest.mark.parametrize("kind", ["kl", "chi_square", "kl_penalty", "dr_dpo"])
def test_agrees_with_the_conic_program(kind) -> None:
    for losses, radius in problems(90, seed=1):
        spread = np.ptp(losses) or 1.0
        if kind in ("kl_penalty", "dr_dpo"):
            radius = spread * min(0.03 + radius, 10.0)  # a temperature
        solve = {"kl_penalty": lambda x, t: kl(x, temperature=t), "dr_dpo": dr_dpo}.get(kind, SETS[kind])
        result = solve(losses, radius)
        assert_distribution(result, losses)
        if radius < {"kl": 1e-5, "chi_square": 1e-12}.get(kind, 0):
            continue  # no interior left for the solver; the dual bounds below cover these
        value, weights = conic(losses, radius, kind)
        assert abs(result.value - value) <= 1e-6 * spread + 1e-12 * abs(value)
        limit = math.log(len(losses)) if kind == "kl" else len(losses) - 1
        if 1e-4 <= radius < 0.9 * limit or kind in ("kl_penalty", "dr_dpo"):
            np.testing.assert_allclose(result.weights, weights, atol=5e-3)


def test_kl_is_feasible_and_meets_its_dual_bound() -> None:
    for losses, radius in problems(300, seed=2):
        result, (x, top, spread) = kl(losses, radius=radius), scaled(losses)
        assert_distribution(result, losses)
        w = result.weights
        assert np.sum(np.where(w > 0, w * np.log(np.where(w > 0, w, 1)), 0)) / len(w) <= radius * (1 + 1e-9) + 1e-14
        tau = min(max(result.dual_price / spread, 1e-12), 1e6)
        bound = top + spread * (radius * tau + tau * np.log(np.mean(np.exp(x / tau))))  # Hu and Hong 2013
        assert -1e-9 * spread <= bound - result.value <= 1e-6 * spread + 1e-12 * abs(top)


def test_chi_square_is_feasible_and_meets_its_dual_bound() -> None:
    for losses, radius in problems(300, seed=3):
        result, (x, top, spread) = chi_square(losses, radius), scaled(losses)
        assert_distribution(result, losses)
        assert np.mean((result.weights - 1) ** 2) <= radius * (1 + 1e-9) + 1e-14
        price = min(max(result.dual_price / spread, 1e-10), 1e6)

        def reply(eta, x=x, price=price):
            return np.maximum(1 + (x - eta) / (2 * price), 0)

        eta = brentq(lambda eta: np.mean(reply(eta)) - 1, x.min(), x.max() + 2 * price, xtol=1e-14)
        bound = eta + price * radius + np.mean(reply(eta) * (x - eta) - price * (reply(eta) - 1) ** 2)
        assert -1e-9 <= bound - (result.value - top) / spread <= 1e-6


def test_cvar_agrees_with_the_linear_program_and_with_its_minimum_form() -> None:
    for losses, radius in problems(120, seed=4):
        level, x = 1 / (1 + radius), np.float64(losses)
        result = cvar(losses, level)
        assert_distribution(result, losses)
        assert result.weights.max() <= 1 / level
        ones = np.ones((1, len(x)))
        unit, top, spread = scaled(losses)
        solved = linprog(-unit, A_eq=ones, b_eq=[len(x)], bounds=(0, 1 / level), method="highs")
        value = top - spread * solved.fun / len(x)
        # Rockafellar and Uryasev 2000, Eq. 4: a piecewise linear function, least at one of the losses
        minimum = min(eta + np.maximum(x - eta, 0).mean() / level for eta in x)
        scale = np.abs(x).max()
        assert result.value == pytest.approx(minimum, abs=1e-12 * scale / level**0.5)
        assert result.value == pytest.approx(value, abs=1e-6 * scale)


def test_values_worked_by_hand() -> None:
    two = kl([0.0, math.log(3)], temperature=1.0)  # weights 2/4 and 6/4, value log((1 + 3) / 2)
    np.testing.assert_allclose(two.weights, [0.5, 1.5], rtol=1e-15)
    assert two.value == pytest.approx(math.log(2), rel=1e-15)
    ball = kl([0.0, math.log(3)], radius=0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    np.testing.assert_allclose(ball.weights, [0.5, 1.5], rtol=1e-12)
    assert ball.dual_price == pytest.approx(1, rel=1e-12)
    soft = dr_dpo([0.0, math.log(3)], 1.0)  # weights 2 * (3/4, 1/4), value -log((1 + 1/3) / 2)
    np.testing.assert_allclose(soft.weights, [1.5, 0.5], rtol=1e-15)
    assert soft.value == pytest.approx(-math.log(2 / 3), rel=1e-15)
    assert (soft.name, soft.dual_price) == ("dr_dpo", 1.0)
    linear = chi_square([1.0, 3.0], 0.25)  # mean 2, std 1: weights 1 -+ 1/2, value 2 + 1/2, slope 1 / (2 sqrt(r))
    np.testing.assert_allclose(linear.weights, [0.5, 1.5], rtol=1e-15)
    assert (linear.value, linear.dual_price) == (pytest.approx(2.5), pytest.approx(1.0))
    cut = chi_square([0.0, 0.0, 1.0, 2.0], 5 / 3)  # threshold 1/2 leaves (1/2, 3/2): w = (0, 0, 1, 3), variance 6/4
    np.testing.assert_allclose(chi_square([0.0, 0.0, 1.0, 2.0], 1.5).weights, [0, 0, 1, 3], atol=1e-12)
    assert cut.weights[3] > 3
    tail = cvar([1.0, 4.0, 2.0, 4.0, 3.0], 0.5)  # the mass 2.5 of 5: both 4s and half of the 3
    np.testing.assert_allclose(tail.weights, [0, 2, 0, 2, 1], rtol=1e-15)
    assert (tail.value, tail.dual_price) == (pytest.approx(3.8), pytest.approx(1.6))  # (3.8 - 3) / 0.5


def test_trivial_sets_give_exactly_ones_and_the_mean() -> None:
    losses = np.random.default_rng(5).normal(size=33) * 7
    trivial = [kl(losses, radius=0), chi_square(losses, 0), cvar(losses, 1)]
    trivial += [kl(losses, temperature=math.inf), dr_dpo(losses, math.inf)]
    for result in trivial:
        assert (result.weights == 1).all()
        assert result.value == result.empirical_value == losses.mean()
    assert kl(losses, radius=0).dual_price == chi_square(losses, 0).dual_price == math.inf


@every_set
@pytest.mark.parametrize("radius", RADII)
def test_constant_losses_and_a_single_atom_keep_weight_one(solve, radius) -> None:
    for losses in ([0.1], [0.1] * 7, [-3e4] * 3):
        result = solve(losses, radius)
        assert (result.weights == 1).all()
        assert result.value == pytest.approx(losses[0], rel=1e-15)


@pytest.mark.parametrize("solve", [SETS["kl"], chi_square, SETS["cvar"]], ids=["kl", "chi_square", "cvar"])
def test_beyond_the_largest_radius_the_maximisers_share_everything(solve) -> None:
    result = solve([1.0, 5.0, 5.0, -2.0, 3.0, 0.0], 1e6)
    np.testing.assert_array_equal(result.weights, [0, 3, 3, 0, 0, 0])
    assert (result.value, result.dual_price) == (5.0, 0.0)


@pytest.mark.parametrize("solve", [SETS["kl"], chi_square, SETS["cvar"]], ids=["kl", "chi_square", "cvar"])
def test_value_increases_with_the_radius_at_the_rate_of_the_price(solve) -> None:
    losses = np.random.default_rng(6).normal(size=12)
    grid = np.concatenate(([0.0], np.geomspace(1e-12, 50, 80)))
    results = [solve(losses, radius) for radius in grid]
    assert (np.diff([r.value for r in results]) >= -1e-14).all()
    if solve is not SETS["cvar"]:
        for radius in (0.01, 0.3, 1.7):
            slope = (solve(losses, radius + 1e-6).value - solve(losses, radius - 1e-6).value) / 2e-6
            assert solve(losses, radius).dual_price == pytest.approx(slope, rel=1e-5)
    else:
        slope = (cvar(losses, 0.3 - 1e-7).value - cvar(losses, 0.3).value) / 1e-7
        assert cvar(losses, 0.3).dual_price == pytest.approx(slope, rel=1e-5)


@every_set
@pytest.mark.parametrize("radius", [0.01, 0.4, 1.3])
def test_weights_are_the_gradient_of_the_value(solve, radius) -> None:
    losses, step = np.random.default_rng(7).normal(size=9), 1e-6
    for i, weight in enumerate(solve(losses, radius).weights):
        bump = step * (np.arange(9) == i)
        slope = 9 * (solve(losses + bump, radius).value - solve(losses - bump, radius).value) / (2 * step)
        assert weight == pytest.approx(slope, abs=1e-6)


@every_set
def test_order_does_not_matter_and_torch_agrees(solve) -> None:
    rng = np.random.default_rng(8)
    for losses, radius in problems(60, seed=9):
        result, order = solve(losses, radius), rng.permutation(len(losses))
        np.testing.assert_allclose(solve(losses[order], radius).weights, result.weights[order], rtol=1e-9, atol=1e-12)
        for value in np.unique(losses):
            assert len(set(result.weights[losses == value].tolist())) == 1
        tensor = torch.tensor(losses, requires_grad=True)
        other = solve(tensor, radius)
        assert other.weights.dtype == torch.float64
        assert not other.weights.requires_grad
        np.testing.assert_allclose(other.weights.numpy(), result.weights, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(float(other.value), result.value, rtol=1e-12)
        np.testing.assert_allclose(float(other.dual_price), result.dual_price, rtol=1e-9, atol=1e-12)


def assert_poisoned(result) -> None:
    for x in (result.weights, result.value, result.dual_price):
        assert x.isnan().all()


@every_set
def test_nothing_waits_for_an_accelerator(solve) -> None:
    result = solve(torch.empty(6, device="meta"), 0.3)
    assert result.weights.shape == (6,)
    assert result.weights.device.type == "meta"
    assert result.value.dtype == torch.float64


@every_set
def test_bad_input_poisons_results_where_it_cannot_be_looked_at(solve, monkeypatch) -> None:
    monkeypatch.setattr("sera_solvers.arrays.on_host", lambda x: not isinstance(x, torch.Tensor))
    for bad in (math.nan, math.inf, -math.inf):
        result = solve(torch.tensor([1.0, bad, 2.0]), 0.3)
        assert_poisoned(result)
    assert not solve(torch.tensor([1.0, 3.0, 2.0]), 0.3).weights.isnan().any()
    assert_poisoned(solve(torch.tensor([1.0, 3.0, 2.0]), torch.tensor(-2.0)))


LOSSES = [1.0, 2.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(kl, LOSSES), r"radius: expected exactly one of radius and temperature, got neither"),
        (partial(kl, LOSSES, radius=1, temperature=1), r"radius: expected exactly one .* got both"),
        (partial(kl, LOSSES, radius=-1), r"radius: .* got -1"),
        (partial(kl, LOSSES, radius=math.nan), r"radius: .* got nan"),
        (partial(kl, LOSSES, temperature=0), r"temperature: .* > 0.* got 0"),
        (partial(dr_dpo, LOSSES, -1.0), r"temperature: .* > 0.* got -1"),
        (partial(dr_dpo, LOSSES, "warm"), r"temperature: .* got 'warm'"),
        (partial(chi_square, LOSSES, math.inf), r"radius: .* finite, got inf"),
        (partial(cvar, LOSSES, 0), r"level: .* > 0, <= 1, got 0"),
        (partial(cvar, LOSSES, 1.5), r"level: .* got 1.5"),
        (partial(cvar, [], 0.5), r"losses: .* shape \(0,\)"),
        (partial(chi_square, [[1.0]], 0.5), r"losses: expected a 1-D array .* shape \(1, 1\)"),
        (partial(dr_dpo, [1.0, math.nan], 1.0), r"losses: expected finite values, got nan at index 1"),
        (partial(kl, [math.inf], radius=1), r"losses: expected finite values, got inf at index 0"),
    ],
)
def test_errors_name_the_argument(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_extreme_scales_stay_exact() -> None:
    for scale in (1e-280, 1e-150, 1e150, 1e290):
        losses = scale * np.array([0.0, 1.0, 3.0, 3.0])
        for name, solve in SETS.items():
            if name not in ("kl_penalty", "dr_dpo"):
                small = solve(losses / scale, 0.4)
                np.testing.assert_allclose(solve(losses, 0.4).weights, small.weights, rtol=1e-9)
        assert (dr_dpo(losses, 1e-300).weights >= 0).all()
    near = kl([0.0, 1.0 - 1e-15, 1.0], radius=math.log(3) - 1e-3)  # almost a tie at the top
    assert near.value == pytest.approx(1, abs=1e-2)
    tiny = kl([0.0, 2.0], radius=1e-20)  # value = mean + sqrt(2 r variance)
    assert tiny.weights[1] - 1 == pytest.approx(math.sqrt(2e-20), rel=1e-4, abs=2e-16)
    assert "2 atoms, kl (optimal)" in str(tiny)

"""Worst-case label flips against the linear program over f, a dual bound and values worked by hand."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from sera_solvers.errors import InputError
from sera_solvers.flips import FlipCase, label_flip

SCALES = (1e-3, 1.0, 1e4)


def problems(count, seed):
    """Margins of 1 to 40 pairs with ties, constants, all-negative ones, float32; a radius and a cost."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        size = int(rng.integers(1, 41)) if i % 8 else 1
        margins = rng.normal(size=size) * SCALES[i % 3] + rng.choice([0.0, 2.0, -2.0])
        margins = np.round(margins, 1) if i % 4 == 1 else margins
        margins = np.full(size, margins[0]) if i % 10 == 3 else margins
        margins = margins.astype(np.float32) if i % 5 == 2 else margins
        cost = float(rng.choice([1.0, 0.3, 17.0]))
        yield margins, cost * float(rng.choice([0.0, 1e-9, 1.0, 50.0, *rng.uniform(size=4)])), cost


def softplus(x):
    return np.logaddexp(0.0, np.float64(x))


def test_agrees_with_the_linear_program_and_meets_its_dual_bound() -> None:
    for margins, radius, cost in problems(400, seed=1):
        case, m, size = label_flip(margins, radius, cost), np.float64(margins), len(margins)
        scale = np.abs(m).max() or 1.0
        solved = linprog(-m / scale, A_ub=np.ones((1, size)), b_ub=[size * radius / cost], bounds=(0, 1))
        best = softplus(-m).mean() - scale * solved.fun / size
        assert case.value == pytest.approx(best, rel=1e-9, abs=1e-7 * scale)
        assert 0 <= case.flip.min() <= case.flip.max() <= 1
        assert case.flip.mean() * cost <= radius * (1 + 1e-12)
        attained = (1 - case.flip) * softplus(-m) + case.flip * softplus(m)
        assert case.value == pytest.approx(attained.mean(), rel=1e-12)
        bound = radius * case.dual_price + (softplus(-m) + np.maximum(m - cost * case.dual_price, 0)).mean()
        assert case.value == pytest.approx(bound, rel=1e-12, abs=1e-12 * scale)
        if radius < cost and len(np.unique(m)) == size:
            np.testing.assert_allclose(case.flip, solved.x, atol=1e-6)


def test_value_worked_by_hand() -> None:
    case = label_flip([1.0, 3.0, -2.0, 2.0], radius=0.75, cost=2.0)  # 1.5 flips: the 3, then half of the 2
    np.testing.assert_array_equal(case.flip, [0, 1, 0, 0.5])
    base = sum(math.log1p(math.exp(-m)) for m in (1, 3, -2, 2)) / 4
    assert case.empirical_value == pytest.approx(base, rel=1e-15)
    assert case.value == pytest.approx(base + (3 + 0.5 * 2) / 4, rel=1e-15)
    assert case.dual_price == 1.0  # gain 2 at cost 2
    assert case.flipped == 0.375
    assert (case.radius, case.cost, case.status) == (0.75, 2.0, "optimal")
    assert "4 pairs at cost 2 (optimal)" in str(case)
    assert "mass flipped   0.375" in str(case)
    assert not case.flip.flags.writeable


def test_flip_as_label_smoothing_gives_the_gradient_of_the_value() -> None:
    margins, step = np.random.default_rng(2).normal(size=9) + 1, 1e-6
    flip = label_flip(margins, 0.4).flip
    smoothed = -(1 - flip) / (1 + np.exp(margins)) + flip / (1 + np.exp(-margins))
    for i, slope in enumerate(smoothed):
        bump = step * (np.arange(9) == i)
        change = label_flip(margins + bump, 0.4).value - label_flip(margins - bump, 0.4).value
        assert slope == pytest.approx(9 * change / (2 * step), abs=1e-6)


def test_radius_zero_and_pairs_already_wrong_flip_nothing() -> None:
    for case in (label_flip([1.0, 5.0], 0), label_flip([-1.0, 0.0, -4.0], 10.0)):
        assert (case.flip == 0).all()
        assert case.value == case.empirical_value
    assert label_flip([1.0, 5.0], 0).dual_price == 5.0
    assert label_flip([-1.0, 0.0], 0).dual_price == 0.0


def test_a_large_radius_flips_every_confident_pair() -> None:
    for radius in (1.0, 3.0, 1e300):
        case = label_flip([4.0, -1.0, 1e4, 0.5], radius)
        np.testing.assert_array_equal(case.flip, [1, 0, 1, 1])
        assert case.dual_price == 0.0
    assert label_flip([4.0], 1e300, 1e-300).flip[0] == 1


def test_ties_share_and_order_does_not_matter() -> None:
    np.testing.assert_allclose(label_flip([2.0, 1.0, 1.0, 1.0, -1.0], 0.4).flip, [1, 1 / 3, 1 / 3, 1 / 3, 0])
    rng = np.random.default_rng(3)
    for margins, radius, cost in problems(60, seed=4):
        order = rng.permutation(len(margins))
        np.testing.assert_array_equal(
            label_flip(margins[order], radius, cost).flip, label_flip(margins, radius, cost).flip[order]
        )


def test_value_increases_with_the_radius_at_the_rate_of_the_price() -> None:
    margins = np.random.default_rng(5).normal(size=12) + 1
    cases = [label_flip(margins, radius) for radius in np.linspace(0, 1.5, 100)]
    assert (np.diff([case.value for case in cases]) >= -1e-15).all()
    assert (np.diff([case.dual_price for case in cases]) <= 0).all()
    slope = (label_flip(margins, 0.3 + 1e-6).value - label_flip(margins, 0.3).value) / 1e-6
    assert label_flip(margins, 0.3).dual_price == pytest.approx(slope, rel=1e-6)


def test_torch_agrees_and_nothing_waits_for_an_accelerator() -> None:
    for margins, radius, cost in problems(60, seed=6):
        case, other = label_flip(margins, radius, cost), label_flip(torch.tensor(margins), radius, cost)
        assert other.flip.dtype == torch.float64
        np.testing.assert_allclose(other.flip.numpy(), case.flip, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(float(other.value), case.value, rtol=1e-12)
        np.testing.assert_allclose(float(other.dual_price), case.dual_price, rtol=1e-12)
    meta = label_flip(torch.empty(6, device="meta"), 0.3)
    assert meta.flip.shape == (6,)
    assert meta.flip.device.type == "meta"
    assert "radius         unknown" in str(meta)


def assert_poisoned(case: FlipCase) -> None:
    for x in (case.flip, case.value, case.dual_price):
        assert x.isnan().all()


def test_bad_input_poisons_results_where_it_cannot_be_looked_at(monkeypatch) -> None:
    monkeypatch.setattr("sera_solvers.arrays.on_host", lambda x: not isinstance(x, torch.Tensor))
    good = torch.tensor([1.0, 3.0])
    for bad in (math.nan, math.inf, -math.inf):
        assert_poisoned(label_flip(torch.tensor([1.0, bad]), 0.3))
    assert_poisoned(label_flip(good, torch.tensor(-0.1)))
    assert_poisoned(label_flip(good, 0.1, torch.tensor(0.0)))
    assert not label_flip(good, 0.3).flip.isnan().any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(label_flip, [1.0], -0.1), r"radius: .* >= 0.* got -0.1"),
        (partial(label_flip, [1.0], math.nan), r"radius: .* got nan"),
        (partial(label_flip, [1.0], 1.0, 0.0), r"cost: .* > 0, finite, got 0"),
        (partial(label_flip, [1.0], 1.0, math.inf), r"cost: .* finite, got inf"),
        (partial(label_flip, [1.0, math.nan], 1.0), r"margins: expected finite values, got nan at index 1"),
        (partial(label_flip, [-math.inf], 1.0), r"margins: expected finite values, got -inf at index 0"),
        (partial(label_flip, [], 1.0), r"margins: .* shape \(0,\)"),
        (partial(label_flip, [[1.0]], 1.0), r"margins: expected a 1-D array .* shape \(1, 1\)"),
    ],
)
def test_errors_name_the_argument(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()

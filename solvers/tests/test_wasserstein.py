import math
import subprocess
import sys
from dataclasses import FrozenInstanceError
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from sera_solvers import NEG_LOG, AffineMax, ConvexLoss, InputError, wasserstein

SUPPORT = (0.01, 1.0)
SQUARE = ConvexLoss(lambda x: (x - 0.4) ** 2, lambda x: 2 * (x - 0.4), "square")
RISING = ConvexLoss(lambda x: x**2 + x, lambda x: 2 * x + 1, "rising")
TWO_ENDED_LOG = ConvexLoss(NEG_LOG.value, NEG_LOG.derivative, "neg-log, two ends", positive_domain=True)
OPEN = ConvexLoss(NEG_LOG.value, NEG_LOG.derivative, "open")
LOSSES = [NEG_LOG, SQUARE, RISING, AffineMax((-3.0, -0.5, 1.0), (1.0, 0.3, -0.5))]
ARRAYS = ("moved", "weights", "gradient", "alpha", "displacement")
NUMBERS = ("value", "empirical_value", "dual_price", "duality_gap")


def as_tensor(values):
    floats = np.asarray(values).dtype.kind == "f"
    return torch.tensor(values, dtype=torch.float64 if floats else None)


def sample(seed, count, *, ties=False, ends=False):
    rng = np.random.default_rng(seed)
    xi = rng.uniform(*SUPPORT, count)
    if ties:
        xi = rng.choice(xi, count)
    if ends:
        xi = np.where(rng.random(count) < 0.2, rng.choice(SUPPORT, count), xi)
    return xi


def test_worked_by_hand():
    # Budget 3 * .05 = .15: the atom at .1 costs .09, .06 is left for the atom at .5, which costs .49.
    case = wasserstein([0.5, 0.1, 0.9], 0.05)
    share = 0.06 / 0.49
    price = math.log(0.5 / 0.01) / 0.49
    np.testing.assert_allclose(case.moved, [share, 1, 0], rtol=1e-13)
    assert case.dual_price == pytest.approx(price, rel=1e-14)
    np.testing.assert_allclose(case.weights, [1 - share + share * price * 0.5, price * 0.1, 1], rtol=1e-13)
    by_hand = ((1 - share) * math.log(2) + (1 + share) * math.log(100) - math.log(0.9)) / 3
    assert case.value == pytest.approx(by_hand, rel=1e-14)
    assert case.transport == pytest.approx(0.05, rel=1e-14)
    positions, masses = case.atoms()
    np.testing.assert_allclose(np.sort(positions), [0.01, 0.01, 0.5, 0.9], rtol=1e-12)
    assert masses.sum() == pytest.approx(1, rel=1e-14)


def test_two_ends_by_hand():
    # |x| on [-1, 2]: every atom gains most by going far right; slopes (2 - |x|) / (2 - x) are 1/3 at -1 and 1 at x >= 0.
    case = wasserstein([-1.0, 0.5], 0.25, support=(-1.0, 2.0), loss=[(-1.0, 0.0), (1.0, 0.0)])
    np.testing.assert_allclose(case.alpha[1], [2 / 3, 0, 1 / 3], rtol=1e-14)
    assert case.dual_price == 1
    assert case.value == pytest.approx(0.75 + 0.25, rel=1e-14)
    # Past the cost 1.5 of the atom at .5 the other one is bought, at 1/3.
    case = wasserstein([-1.0, 0.5], 1.5, support=(-1.0, 2.0), loss=[(-1.0, 0.0), (1.0, 0.0)])
    assert case.dual_price == pytest.approx(1 / 3)
    np.testing.assert_allclose(case.alpha, [[0, 0.5, 0.5], [0, 0, 1]], atol=1e-14)
    assert case.value == pytest.approx((0.5 * 1 + 0.5 * 2 + 2) / 2, rel=1e-14)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("make", [np.array, torch.tensor, partial(torch.tensor, dtype=torch.float32)])
def test_radius_zero_changes_nothing(loss, make):
    xi = make(sample(0, 37, ties=True, ends=True).tolist())
    if getattr(xi, "dtype", None) is torch.float32:
        xi = xi.clamp(*SUPPORT)
    case = wasserstein(xi, 0.0, support=SUPPORT, loss=loss)
    assert bool((case.weights == 1).all())
    assert bool((case.moved == 0).all())
    assert float(case.value) == float(case.empirical_value)
    plain = case.xi
    assert float(case.empirical_value) == float(loss.value(plain).mean())
    assert bool((case.gradient == loss.derivative(plain)).all())


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("radius", [0.003, 0.05, 0.3, 5.0])
def test_against_a_transport_program_on_a_grid(loss, radius):
    # Every distribution on the sample and the ends is allowed, so this linear program knows nothing of the closed form.
    xi = sample(4, 9, ends=True)
    targets = np.unique(np.concatenate((xi, SUPPORT, np.linspace(*SUPPORT, 11))))
    cost = np.abs(xi[:, None] - targets)
    gains = np.tile(loss.value(targets), len(xi)) / len(xi)
    rows = np.kron(np.eye(len(xi)), np.ones(len(targets)))
    solved = linprog(-gains, A_ub=cost.ravel()[None] / len(xi), b_ub=[radius], A_eq=rows, b_eq=np.ones(len(xi)))
    case = wasserstein(xi, radius, support=SUPPORT, loss=loss)
    assert case.value == pytest.approx(-solved.fun, rel=1e-9)
    assert case.dual_price == pytest.approx(-solved.ineqlin.marginals[0], rel=1e-6, abs=1e-9)


@settings(max_examples=120, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.floats(0, 1.2),
    st.sampled_from([NEG_LOG, TWO_ENDED_LOG, *LOSSES[1:]]),
    st.booleans(),
    st.booleans(),
)
def test_feasible_certified_and_order_free(seed, count, radius, loss, ties, ends):
    xi = sample(seed, count, ties=ties, ends=ends)
    case = wasserstein(xi, radius, support=SUPPORT, loss=loss)
    positions, masses = case.atoms()
    assert positions.min() >= SUPPORT[0]
    assert positions.max() <= SUPPORT[1]
    assert masses.min() > 0
    assert masses.sum() == pytest.approx(1, abs=1e-12)
    assert case.alpha.min() >= -1e-15
    np.testing.assert_allclose(case.alpha.sum(1), 1, rtol=1e-14)
    assert case.transport <= radius * (1 + 1e-12)
    assert masses @ loss.value(positions) == pytest.approx(case.value, rel=1e-9, abs=1e-12)
    assert abs(case.duality_gap) <= 1e-11
    order = np.random.default_rng(seed).permutation(count)
    shuffled = wasserstein(xi[order], radius, support=SUPPORT, loss=loss)
    assert shuffled.value == pytest.approx(case.value, rel=1e-13)
    for name in ARRAYS:
        np.testing.assert_allclose(getattr(shuffled, name), getattr(case, name)[order], rtol=1e-11, atol=1e-11)


def test_equal_atoms_share():
    case = wasserstein([0.3, 0.2, 0.2, 0.2, 0.2], 0.05)
    assert len(np.unique(case.moved[1:])) == 1
    assert 0 < case.moved[1] < 1
    assert case.moved[0] == 0


@pytest.mark.parametrize("radius", [0.0, 0.01, 0.1, 0.6, 3.0])
@pytest.mark.parametrize("ends", [False, True])
def test_a_decreasing_loss_needs_one_end_only(radius, ends):
    xi = sample(8, 50, ends=ends)
    one, two = wasserstein(xi, radius), wasserstein(xi, radius, loss=TWO_ENDED_LOG)
    assert one.value == pytest.approx(two.value, rel=1e-14)
    for name in ("moved", "weights", "gradient"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(two.alpha[:, :2], one.alpha, atol=1e-14)


def test_a_radius_beyond_the_diameter_moves_everything_to_the_worst_end():
    case = wasserstein(sample(1, 20), 7.0)
    assert case.value == pytest.approx(-math.log(0.01), rel=1e-14)
    assert case.dual_price == 0
    assert (case.moved == 1).all()
    assert (case.weights == 0).all()


@pytest.mark.parametrize("radius", [1e3, 1e6, 1e9, 1e300, 1.7e308])
@pytest.mark.parametrize("method", ["exact", "program"])
@pytest.mark.parametrize("make", [np.array, as_tensor])
def test_the_certificate_of_a_radius_beyond_the_diameter_is_that_of_the_diameter(make, method, radius):
    xi = make(sample(1, 12).tolist())
    case = wasserstein(xi, radius, method=method, loss=SQUARE)
    # The farthest of 0.4's two sides is hi.
    assert float(case.value) == pytest.approx(0.36, rel=1e-2 if method == "program" else 1e-14)
    assert abs(float(case.duality_gap)) < 1e-8
    assert abs(float(wasserstein(xi, make(radius), method=method, loss=SQUARE).duality_gap)) < 1e-8


@pytest.mark.parametrize("loss", [NEG_LOG, SQUARE, RISING], ids=lambda loss: loss.name)
def test_weights_are_finite_differences_of_the_value(loss):
    checked, differences = 0, 0
    for seed in range(6):
        count, radius = 12, (0.002, 0.02, 0.05, 0.1, 0.25, 0.5)[seed]
        xi = sample(seed, count, ties=seed % 2 == 1)
        solve = partial(wasserstein, radius=radius, support=SUPPORT, loss=loss)
        case = solve(xi)
        for i in range(count):
            step = np.zeros(count)
            step[i] = 1e-4 * min(xi[i] - SUPPORT[0], SUPPORT[1] - xi[i])
            ahead, behind = solve(xi + step), solve(xi - step)
            differences += 1
            if not (same_plan(ahead, case) and same_plan(behind, case)):
                continue  # a kink: another atom, or another end, becomes the marginal one
            checked += 1
            slope = count * (ahead.value - behind.value) / (2 * step[i])
            assert case.gradient[i] == pytest.approx(slope, rel=1e-6, abs=1e-6)
            assert case.weights[i] == pytest.approx(slope / loss.derivative(xi)[i], rel=1e-6, abs=1e-6)
    assert checked > 0.8 * differences


def same_plan(one, other):
    """Whether the same shares of the same atoms are empty, partly and fully used."""
    return bool((np.sign(one.alpha) == np.sign(other.alpha)).all())


def test_the_dual_price_is_the_slope_of_the_value_in_the_radius():
    xi = sample(2, 15)
    for loss in (NEG_LOG, SQUARE):
        solve = partial(wasserstein, xi, support=SUPPORT, loss=loss)
        slope = (solve(0.0613 + 1e-6).value - solve(0.0613 - 1e-6).value) / 2e-6
        assert solve(0.0613).dual_price == pytest.approx(slope, rel=1e-6)


def test_weights_are_continuous_at_the_ends():
    at, near = (wasserstein([0.01 + step, 0.3, 0.6], 0.05) for step in (0.0, 1e-9))
    np.testing.assert_allclose(at.weights, near.weights, rtol=1e-6)
    assert at.moved[0] == 1


def test_a_flat_loss_at_an_atom_has_weight_one_only_if_nothing_pulls():
    loss = [(-1.0, 0.0), (0.0, -0.5)]
    case = wasserstein([0.9, 0.6, 0.7], 0.4, support=(0.0, 1.0), loss=loss)
    np.testing.assert_array_equal(np.isnan(case.weights), case.gradient != 0)
    still = wasserstein([0.9, 0.6], 0.0, support=(0.0, 1.0), loss=loss)
    np.testing.assert_array_equal(still.weights, [1, 1])


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("radius", [0.0, 0.05, 2.0])
def test_tensors_equal_arrays(loss, radius):
    xi = sample(5, 64, ties=True, ends=True)
    tensor = torch.tensor(xi, requires_grad=True)
    one, two = (wasserstein(x, radius, support=SUPPORT, loss=loss) for x in (xi, tensor))
    for name in (*ARRAYS, *NUMBERS, "xi"):
        value = getattr(two, name)
        assert isinstance(value, torch.Tensor)
        assert value.dtype is torch.float64
        assert not value.requires_grad
        np.testing.assert_allclose(value.numpy(), getattr(one, name), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(two.atoms()[1].numpy(), one.atoms()[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_on_a_device_nothing_waits(loss):
    xi = torch.empty(17, device="meta")
    for radius in (0.05, torch.empty((), device="meta")):
        case = wasserstein(xi, radius, support=SUPPORT, loss=loss)
        assert case.weights.device.type == "meta"
        assert case.weights.shape == (17,)
        assert case.value.shape == ()
        assert "unknown" in str(case)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 1.5])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("spoilt", ["xi", "radius"])
def test_on_a_device_bad_values_spoil_everything(monkeypatch, bad, loss, spoilt):
    # A CPU tensor treated as one on an accelerator: the same operations, with values to look at.
    for module in ("arrays", "problem"):
        monkeypatch.setattr(f"sera_solvers.{module}.on_host", lambda x: not isinstance(x, torch.Tensor))
    xi, radius = torch.tensor(sample(5, 8)), torch.tensor(0.1, dtype=torch.float64)
    fine = wasserstein(xi, radius, support=SUPPORT, loss=loss)
    assert torch.equal(fine.weights, wasserstein(xi, 0.1, support=SUPPORT, loss=loss).weights)
    if spoilt == "xi":
        xi[3] = bad
    elif bad != 1.5:
        radius = torch.tensor(bad, dtype=torch.float64)
    else:
        return
    case = wasserstein(xi, radius, support=SUPPORT, loss=loss)
    for name in (*ARRAYS[:4], *NUMBERS[:1], *NUMBERS[2:]):
        value = getattr(case, name)
        assert value[..., :1].isnan().all() if value.ndim else value.isnan(), name
    for name in ("moved", "weights", "gradient", "alpha"):
        assert getattr(case, name).isnan().all(), name


def test_float32_may_overstep_by_its_rounding():
    for make in (partial(np.array, dtype=np.float32), partial(torch.tensor, dtype=torch.float32)):
        xi = make([0.01, 0.5, 1.0])
        assert float(xi[0]) < 0.01
        case = wasserstein(xi, 0.1)
        assert float(case.xi[0]) == 0.01
    with pytest.raises(InputError, match="xi: expected values in"):
        wasserstein(np.array([0.00999], np.float32), 0.1)
    half = torch.tensor([0.01, 0.5], dtype=torch.bfloat16)
    assert wasserstein(half, 0.1).value > 0


@pytest.mark.parametrize("method", ["exact", "program"])
@pytest.mark.parametrize("radius", [0.0, 0.1, 2.0])
def test_batch_of_one(method, radius):
    case = wasserstein([0.3], radius, method=method)
    assert case.weights.shape == (1,)
    assert case.value >= case.empirical_value
    assert wasserstein((0.01,), radius).value == pytest.approx(-math.log(0.01), rel=1e-14)


def test_results_are_immutable_and_explain_themselves():
    xi = np.array([0.1, 0.5])
    case = wasserstein(xi, 0.01)
    with pytest.raises(ValueError, match="read-only"):
        case.weights[0] = 2
    with pytest.raises(FrozenInstanceError):
        case.value = 0.0
    xi[0] = 0.9
    assert case.xi[0] == 0.1
    for word in ("neg-log", "2 atoms", "radius", "dual price", "duality gap", "exact, optimal"):
        assert word in str(case)


@pytest.mark.parametrize("method", ["exact", "program"])
@pytest.mark.parametrize("make", [lambda x: x, as_tensor], ids=["list", "tensor"])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"xi": [0.5, math.nan]}, r"xi: expected values in \[0.01, 1\], got nan at index 1. Clamp it"),
        ({"xi": [0.5, 1.5]}, "xi: .* got 1.5 at index 1"),
        ({"xi": [0.005]}, "xi: .* got 0.005 at index 0"),
        ({"xi": []}, "xi: expected a 1-D array with at least one value"),
        ({"xi": [[0.5]]}, r"xi: expected a 1-D array with at least one value, got shape \(1, 1\)"),
        ({"xi": [True]}, "xi: expected .* real numbers"),
        ({"xi": [0.5j]}, "xi: expected .* real numbers"),
        ({"radius": -0.1}, "radius: expected a number >= 0, finite, got -0.1"),
        ({"radius": math.nan}, "radius: .* got nan"),
        ({"radius": math.inf}, "radius: .* got inf"),
        ({"radius": "far"}, "radius: .* got 'far'"),
        ({"radius": [0.1, 0.2]}, "radius: "),
        ({"radius": True}, "radius: expected a number .* got True"),
        ({"radius": np.True_}, "radius: expected a number .* got .*True"),
        ({"radius": np.array(True)}, "radius: expected a number"),
        ({"radius": torch.tensor(True)}, "radius: expected a number .* got tensor"),
        ({"support": (0.0, 1.0)}, "support: expected lo > 0 for the loss 'neg-log'"),
        ({"support": (1.0, 0.5)}, "support: expected finite lo < hi"),
        ({"loss": "log"}, "loss: expected a ConvexLoss"),
        ({"loss": OPEN, "support": (0.0, 1.0)}, "loss: expected a finite .* got a value of inf at 0 for 'open'"),
        ({"method": "exakt"}, "method: expected one of exact, program, got 'exakt'. Did you mean 'exact'?"),
    ],
)
def test_bad_input_names_the_argument(method, make, changed, message):
    arguments = {"xi": [0.5, 0.7], "radius": 0.1, "method": method} | changed
    arguments["xi"] = make(arguments["xi"])
    with pytest.raises(InputError, match=f"^{message}"):
        wasserstein(**arguments)


@pytest.mark.parametrize("unread", [{"pieces": 16}, {"solver": "CLARABEL"}, {"fallback": ("HIGHS",)}], ids=str)
def test_what_the_exact_method_would_not_read_is_refused(unread):
    with pytest.raises(InputError, match=f"^{next(iter(unread))}: expected nothing.* Leave .* or set method"):
        wasserstein([0.5], 0.1, **unread)


@pytest.mark.parametrize("xi", ["abc", None, [[0.5], [0.5, 0.6]], object()])
def test_what_is_not_an_array(xi):
    with pytest.raises(InputError, match=r"^xi: expected a.* of real numbers"):
        wasserstein(xi, 0.1)


def test_importing_loads_neither_torch_nor_cvxpy():
    code = (
        "import sys, sera_solvers; sera_solvers.wasserstein([0.2, 0.5], 0.1); "
        "sys.exit(' '.join({'torch', 'cvxpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

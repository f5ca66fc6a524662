import logging
import math
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from sera_solvers import NEG_LOG, AffineMax, ConvexLoss, InputError, SolveError, programs, tangents, wasserstein

SHAPES = [(1, 2), (2, 32), (9, 3), (33, 8), (64, 16)]
RADII = ("none", "small", "medium", "beyond")
KINDS = ("neg-log", "decreasing", "any", "square")


def affine_loss(rng, kind, low, high, pieces):
    """K affine pieces on [low, high]; only "neg-log" and "decreasing" are monotone."""
    if kind == "neg-log" and low > 0:
        return tangents(NEG_LOG, (low, high), pieces)
    if kind == "square":
        centre = rng.uniform(low, high)
        square = ConvexLoss(lambda x: (x - centre) ** 2 + 0.1, lambda x: 2 * (x - centre), "square")
        return tangents(square, (low, high), pieces)
    slopes = rng.normal(size=pieces) * rng.choice([0.1, 1.0, 30.0])
    if kind == "decreasing":
        slopes = -np.abs(slopes)
    return AffineMax(tuple(slopes), tuple(rng.normal(size=pieces)))


def random_problem(seed, count, pieces, kind, size):
    """Atoms with ties and on the ends, sometimes float32, with a support, a radius and an affine loss."""
    rng = np.random.default_rng(seed)
    low = float(rng.choice([0.01, 0.3, -2.0]))
    high = low + float(rng.choice([0.1, 0.99, 7.0]))
    xi = rng.uniform(low, high, count)
    if rng.random() < 0.4:
        xi = rng.choice(xi, count)
    if rng.random() < 0.4:
        xi = np.where(rng.random(count) < 0.3, rng.choice([low, high], count), xi)
    if rng.random() < 0.3:
        xi = xi.astype(np.float32)
    width = high - low
    radius = {"none": 0.0, "small": 10 ** rng.uniform(-5, -2), "medium": rng.uniform(0.01, 0.6), "beyond": 2.0}[size]
    return xi, radius * width, (low, high), affine_loss(rng, kind, low, high, pieces)


def check_agreement(xi, radius, support, loss):
    exact = wasserstein(xi, radius, support=support, loss=loss)
    program = wasserstein(xi, radius, support=support, loss=loss, method="program")
    reached = np.concatenate((loss.value(exact.xi), loss.value(np.array(support))))
    # Relative to the value; where it happens to lie near 0, to a hundredth of the range of the loss.
    accuracy = 1e-6 * max(abs(exact.value), 1e-2 * np.ptp(reached), 1e-12)
    assert abs(program.value - exact.value) <= accuracy
    assert program.value + program.duality_gap >= exact.value - 1e-12 * np.abs(reached).max()
    assert program.status == "optimal"
    for case in (exact, program):
        check_feasible(case)
        positions, masses = case.atoms()
        attained = masses @ loss.value(positions)
        assert attained == pytest.approx(case.value, rel=1e-9, abs=1e-11 * np.abs(reached).max())
    if radius == 0:
        assert program.value == exact.value == program.empirical_value
        assert (program.weights == 1).all()
        assert (exact.weights == 1).all()


def check_feasible(case):
    positions, masses = case.atoms()
    low, high = case.support
    assert low <= positions.min()
    assert positions.max() <= high
    raw = case.xi[:, None] - case.displacement / np.where(case.alpha > 1e-7, case.alpha, np.inf)
    assert raw.min() >= low - 1e-7 * (high - low)
    assert raw.max() <= high + 1e-7 * (high - low)
    assert case.alpha.min() >= 0
    np.testing.assert_allclose(case.alpha.sum(1), 1, rtol=0, atol=1e-12)
    assert masses.sum() == pytest.approx(1, abs=1e-12)
    assert case.transport <= case.radius * (1 + 1e-12)
    distance = wasserstein_distance(positions, case.xi, masses)
    assert distance <= case.radius * (1 + 1e-9) + 1e-13 * (high - low)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.sampled_from(SHAPES), st.sampled_from(KINDS), st.sampled_from(RADII))
def test_exact_and_program_agree(seed, shape, kind, size):
    check_agreement(*random_problem(seed, *shape, kind, size))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.sampled_from(SHAPES[:3]), st.sampled_from(KINDS), st.floats(-12, -5))
def test_radii_too_small_for_the_solver_are_solved_in_part(seed, shape, kind, exponent):
    xi, _, support, loss = random_problem(seed, *shape, kind, "small")
    check_agreement(xi, 10**exponent * (support[1] - support[0]), support, loss)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=2000, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 256),
    st.integers(2, 32),
    st.sampled_from(KINDS),
    st.sampled_from(RADII),
)
def test_exact_and_program_agree_at_every_shape(seed, count, pieces, kind, size):
    check_agreement(*random_problem(seed, count, pieces, kind, size))


@pytest.mark.parametrize("pieces", [2, 8, 32])
@pytest.mark.parametrize("radius", [0.01, 0.1])
def test_neg_log_lies_between_the_program_and_the_tangent_gap(pieces, radius):
    xi = np.random.default_rng(3).uniform(0.01, 1.0, 30)
    exact, program = wasserstein(xi, radius), wasserstein(xi, radius, method="program", pieces=pieces)
    assert program.tangent_gap > 0
    assert program.value <= exact.value + 1e-12
    assert exact.value <= program.value + program.tangent_gap + 1e-6


def test_the_programs_weights_are_those_of_the_loss_itself():
    xi = np.random.default_rng(3).uniform(0.01, 1.0, 30)
    pieces = tangents(NEG_LOG, (0.01, 1.0), 16)
    exact, program = (wasserstein(xi, 0.05, loss=pieces, method=method) for method in ("exact", "program"))
    np.testing.assert_allclose(program.weights, exact.weights, rtol=1e-5, atol=1e-6)
    assert program.dual_price == pytest.approx(exact.dual_price, rel=1e-6)
    many = wasserstein(xi, 0.05, method="program", pieces=32)
    np.testing.assert_allclose(many.weights, wasserstein(xi, 0.05).weights, atol=2e-2)


@pytest.mark.parametrize("solver", ["HIGHS", "SCIPY"])
def test_other_open_solvers(solver):
    xi, loss = [0.2, 0.2, 0.7, 0.9], [(-2.0, 1.0), (1.0, -0.3)]
    exact = wasserstein(xi, 0.1, support=(0.0, 1.0), loss=loss)
    program = wasserstein(xi, 0.1, support=(0.0, 1.0), loss=loss, method="program", solver=solver)
    assert program.value == pytest.approx(exact.value, rel=1e-9)
    assert program.duality_gap == pytest.approx(0, abs=1e-9)


def test_the_empirical_value_is_that_of_the_pieces_that_were_solved():
    xi = np.array([0.2, 0.4, 0.9])
    program = wasserstein(xi, 0.1, method="program", pieces=4)
    assert program.empirical_value == tangents(NEG_LOG, (0.01, 1.0), 4).value(xi).mean()
    assert program.empirical_value < wasserstein(xi, 0.1).empirical_value


def test_tensors_come_back_as_tensors():
    xi = np.array([0.2, 0.4, 0.9])
    one, two = (wasserstein(x, 0.1, method="program", pieces=4) for x in (xi, torch.tensor(xi, dtype=torch.float64)))
    assert isinstance(two.weights, torch.Tensor)
    assert isinstance(two.value, torch.Tensor)
    np.testing.assert_array_equal(two.weights.numpy(), one.weights)
    with pytest.raises(InputError, match="xi: expected values, got a tensor on the meta device"):
        wasserstein(torch.empty(3, device="meta"), 0.1, method="program")


def test_compiled_once_for_a_shape():
    programs.compiled.cache_clear()
    rng = np.random.default_rng(0)
    for support in ((0.01, 1.0), (0.01, 1.0), (0.2, 5.0)):
        wasserstein(rng.uniform(0.3, 0.9, 5), 0.1, support=support, method="program", pieces=3)
    assert programs.compiled.cache_info().misses == 1
    assert programs.compiled.cache_info().maxsize == programs.COMPILED_KEPT
    assert programs.compiled(5, 3, "CLARABEL").problem.is_dcp(dpp=True)
    wasserstein(rng.uniform(0.3, 0.9, 6), 0.1, method="program", pieces=3)
    assert programs.compiled.cache_info().misses == 2


def test_threads_do_not_mix_parameters():
    rng = np.random.default_rng(0)
    samples = [rng.uniform(0.1, 0.9, 8) for _ in range(12)]

    def solve(xi):
        return wasserstein(xi, 0.1, method="program", pieces=4).value

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(solve, samples)) == [solve(xi) for xi in samples]


@pytest.fixture
def hurried(monkeypatch):
    """CLARABEL stopped after two iterations."""
    monkeypatch.setattr(programs, "SETTINGS", MappingProxyType({"CLARABEL": ({"max_iter": 2},)}))


@pytest.mark.usefixtures("hurried")
def test_anything_but_optimal_is_an_error():
    with pytest.raises(SolveError, match="CLARABEL: expected an accurate optimum, got status 'user_limit'. Name other"):
        wasserstein([0.2, 0.6], 0.1, method="program")


@pytest.mark.usefixtures("hurried")
def test_fallback_is_tried_in_order_and_logged(caplog):
    with caplog.at_level(logging.WARNING, "sera_solvers"):
        case = wasserstein([0.2, 0.6], 0.1, method="program", fallback=("HIGHS",))
    assert case.status == "optimal"
    assert [record.message for record in caplog.records] == [
        "CLARABEL found no accurate optimum (status user_limit); trying HIGHS"
    ]
    with pytest.raises(SolveError, match="CLARABEL, CLARABEL: .* 'user_limit, user_limit'"):
        wasserstein([0.2, 0.6], 0.1, method="program", fallback=("CLARABEL",))


def test_inaccurate_is_an_error(monkeypatch):
    loose = {"max_iter": 6, "reduced_tol_gap_abs": 1e3, "reduced_tol_gap_rel": 1e3, "reduced_tol_feas": 1e3}
    monkeypatch.setattr(programs, "SETTINGS", MappingProxyType({"CLARABEL": (loose,)}))
    with pytest.raises(SolveError, match="'optimal_inaccurate'"):
        wasserstein([0.2, 0.6, 0.7], 0.1, method="program")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"solver": "CLARABLE"}, "solver: expected one of CLARABEL, .* got 'CLARABLE'. Did you mean 'CLARABEL'?"),
        ({"solver": "MOSEK"}, "solver: expected one of .*, got 'MOSEK'."),
        ({"solver": "OSQP"}, "solver: expected one of CLARABEL, .*, got 'OSQP'."),
        ({"fallback": ("GUROBY",)}, "fallback: expected one of .*, got 'GUROBY'."),
        ({"fallback": "HIGHS"}, "fallback: expected a sequence of solver names, got 'HIGHS'."),
        ({"pieces": 1}, "pieces: expected an integer >= 2, got 1"),
        ({"xi": [0.5, math.nan]}, "xi: .* got nan at index 1"),
    ],
)
def test_bad_input_names_the_argument(changed, message):
    with pytest.raises(InputError, match=f"^{message}"):
        wasserstein(**({"xi": [0.2, 0.6], "radius": 0.1, "method": "program"} | changed))

"""The worst case as a finite convex program: compiled once a shape, solved by an open solver, made exactly feasible.

The variables are alpha and p = alpha xi - q, so that xi enters in one place. Atoms are mapped to [0, 1] and the loss
to a range of 1 before solving, so the solver's tolerances mean the same for every support and loss.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from sera_solvers.arrays import Array, Scalar, is_tensor
from sera_solvers.errors import InputError, SolveError, unknown
from sera_solvers.losses import AffineMax, Loss, check_support, tangent_gap, tangents
from sera_solvers.problem import Problem, checked, posed, returned
from sera_solvers.result import WorstCase

LEAST_RADIUS = 5e-8
"""The smallest radius, in widths of the support, that is given to a solver; interior points do not resolve less."""

COMPILED_KEPT = 32
"""How many compiled programs are kept, least recently used first to go."""

_CLARABEL = MappingProxyType({"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "max_iter": 200})
_FINER = MappingProxyType({"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "max_iter": 200})
# The default regularisation stalls the last digits when the budget is small.
_LITTLE = MappingProxyType({"static_regularization_constant": 1e-12, "static_regularization_proportional": 0.0})

SETTINGS: Mapping[str, tuple[Mapping[str, object], ...]] = MappingProxyType(
    {
        "CLARABEL": (
            {**_FINER, **_LITTLE, "tol_feas": 1e-10},
            {**_CLARABEL, **_LITTLE, "tol_feas": 1e-10},
            {**_CLARABEL, **_LITTLE, "tol_feas": 1e-9},
            {**_CLARABEL, "tol_feas": 1e-8},
        ),
        "SCS": ({"eps_abs": 1e-9, "eps_rel": 1e-9, "max_iters": 200_000},),
    }
)
"""Tolerances tight enough for values to agree with the exact method to 1e-6, tried in order until one is reached.

The last for CLARABEL relies on its own regularisation and feasibility tolerance. Solvers not named keep their own.
"""

INACCURATE = frozenset({"OSQP"})
"""Solvers that do not reach such tolerances on these programs, and so are not offered."""

Parameters: TypeAlias = tuple[Array, Array, Array, float]
"""Slopes [K], intercepts [K], atoms [N] and the budget of |q|."""


@dataclass(frozen=True, eq=False)
class CompiledProgram:
    """The program of one shape and solver with its parameters; `lock` serialises its use."""

    problem: Any
    parameters: tuple[Any, Any, Any, Any]
    variables: tuple[Any, Any]
    budget: Any
    solver: str
    lock: Any = field(default_factory=threading.Lock)

    def solve(self, values: Parameters) -> tuple[Array, Array, float]:
        """Optimal alpha [N, K], q [N, K] and price for the values of (slopes, intercepts, atoms, budget).

        Raises:
            SolveError: the status is anything but optimal.
        """
        with self.lock:
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.value = value
            for settings in SETTINGS.get(self.solver, ({},)):
                status = self._run(settings)
                if status == _cvxpy().OPTIMAL:
                    alpha, displacement = (np.array(variable.value) for variable in self.variables)
                    return alpha, displacement, max(0.0, float(self.budget.dual_value))
        raise _failure(self.solver, status)

    def _run(self, settings: Mapping[str, object]) -> str:
        """Runs the solver, fills in the variables if it found an optimum, and returns its status.

        The steps of cvxpy's own `solve`, which would warn of an inaccurate status, a global effect, or raise.
        """
        try:
            data, chain, inverse = self.problem.get_problem_data(
                self.solver, canon_backend=_cvxpy().COO_CANON_BACKEND, solver_opts=dict(settings)
            )
            raw = chain.solve_via_data(self.problem, data, warm_start=False, verbose=False, solver_opts=dict(settings))
        except _cvxpy().error.SolverError as error:
            return f"failed ({error})"
        solution = chain.invert(raw, inverse)
        if solution.status == _cvxpy().OPTIMAL:
            self.problem.unpack(solution)
        return str(solution.status)


def _cvxpy() -> Any:  # noqa: ANN401  # a module without stubs
    """cvxpy, imported when first needed: it takes longer to import than most exact solves together."""
    return importlib.import_module("cvxpy")


def _failure(solver: str, status: str) -> SolveError:
    return SolveError(solver, status, 'Name other solvers in `fallback`, or use method="exact".')


@lru_cache(maxsize=COMPILED_KEPT)
def compiled(atoms: int, pieces: int, solver: str) -> CompiledProgram:
    """The program for N atoms on [0, 1] and K affine pieces; slopes, intercepts, atoms and budget are parameters.

    Source: Mohajerin Esfahani and Kuhn 2018, Theorem 4.4, whose perspectives alpha l_k(xi - q / alpha) are
    a_k p + b_k alpha for affine pieces.
    """
    cvxpy = _cvxpy()
    slopes, intercepts = cvxpy.Parameter(pieces), cvxpy.Parameter(pieces)
    positions, allowance = cvxpy.Parameter(atoms), cvxpy.Parameter(nonneg=True)
    alpha, mass_point, down, up = (cvxpy.Variable((atoms, pieces), nonneg=True) for _ in range(4))
    moves = mass_point == cvxpy.diag(positions) @ alpha - down + up  # q = down - up; |q| = down + up at the optimum
    budget = cvxpy.sum(down + up) <= allowance
    inside = [mass_point <= alpha, cvxpy.sum(alpha, axis=1) == 1]
    worst = cvxpy.sum(mass_point, axis=0) @ slopes + cvxpy.sum(alpha, axis=0) @ intercepts
    problem = cvxpy.Problem(cvxpy.Maximize(worst), [moves, *inside, budget])
    return CompiledProgram(problem, (slopes, intercepts, positions, allowance), (alpha, down - up), budget, solver)


def solve_program(
    raw: Array, radius: Scalar, support: tuple[float, float], loss: Loss, pieces: int, solvers: Sequence[str]
) -> WorstCase:
    """The worst case by program: the arguments and errors of `wasserstein`, whose result goes back to xi's device."""
    start = time.perf_counter()
    problem = _on_host(raw, radius, support, loss)
    affine = loss if isinstance(loss, AffineMax) else tangents(loss, problem.support, pieces)
    pieced = posed(problem.xi, problem.radius, problem.support, affine, 0.0)
    alpha, displacement, price = _solved(pieced, affine, solvers) if problem.radius > 0 else _unmoved(pieced, affine)
    down, up = _shares(pieced, displacement, price)
    gradient, weights = problem.envelope(down, up, price)
    empirical = float(pieced.values.mean())
    value = _attained(pieced, alpha, displacement) if problem.radius > 0 else empirical
    result = WorstCase(
        value=value,
        empirical_value=empirical,
        dual_price=price,
        moved=(down + up).clip(0.0, 1.0),
        weights=weights,
        gradient=gradient,
        alpha=alpha,
        displacement=displacement,
        xi=problem.xi,
        radius=problem.radius,
        support=problem.support,
        duality_gap=float(pieced.bound(price)) - (value - empirical),
        tangent_gap=0.0 if affine is loss else tangent_gap(loss, affine, problem.support),
        loss=loss.name,
        method="program",
        status="optimal",
        solve_seconds=time.perf_counter() - start,
    )
    return returned(result, raw)


def installed(solver: str, fallback: Sequence[str]) -> tuple[str, ...]:
    """The solvers to try, in order.

    Raises:
        InputError: naming `solver` or `fallback`, when cvxpy has no such solver or it is `INACCURATE`.
    """
    if isinstance(fallback, str):
        raise InputError("fallback", "a sequence of solver names", repr(fallback), f"Write ({fallback!r},).")
    known = _known_solvers()
    for argument, name in (("solver", solver), *(("fallback", name) for name in fallback)):
        if name not in known:
            raise unknown(argument, name, known)
    return (solver, *fallback)


@lru_cache(maxsize=1)
def _known_solvers() -> tuple[str, ...]:
    # Tries to import every solver: milliseconds.
    return tuple(name for name in _cvxpy().installed_solvers() if name not in INACCURATE)


def _on_host(raw: Array, radius: Scalar, support: tuple[float, float], loss: Loss) -> Problem:
    """The problem in NumPy; values on an accelerator are waited for and checked here."""
    if is_tensor(raw) and raw.is_meta:
        raise InputError("xi", "values", "a tensor on the meta device", 'Use method="exact", which needs none.')
    raw, radius = (x.detach().cpu() if is_tensor(x) else x for x in (raw, radius))
    problem = checked(raw, radius, check_support(support, loss), loss)
    return posed(np.asarray(problem.xi), problem.radius, problem.support, loss, 0.0)


def _unmoved(problem: Problem, affine: AffineMax) -> tuple[Array, Array, float]:
    """Radius 0 leaves one distribution, so there is nothing to solve; its price is that of the steepest move."""
    active = affine.pieces(problem.xi).argmax(1)
    alpha = (active[:, None] == np.arange(len(affine.slopes))).astype(np.float64)
    return alpha, np.zeros_like(alpha), problem.steepest()


def _solved(problem: Problem, affine: AffineMax, solvers: Sequence[str]) -> tuple[Array, Array, float]:
    """Feasible alpha and displacement, and the price, from the first solver with an accurate optimum."""
    low, high = problem.support
    width = high - low
    reached = np.concatenate((problem.values, problem.end_values))
    shift, scale = reached.min(), float(np.ptp(reached)) or 1.0
    slopes, intercepts = np.array(affine.slopes), np.array(affine.intercepts)
    atoms = ((problem.xi - low) / width).clip(0.0, 1.0)
    allowance = min(problem.radius / width, 1.0) * len(atoms)  # nothing is farther away than the diameter
    # The optimum is concave in the radius, and next to 0 almost linear: a part of a larger move is as good.
    resolved = max(allowance, LEAST_RADIUS * len(atoms))
    values = (slopes * width / scale, (slopes * low + intercepts - shift) / scale, atoms, resolved)
    alpha, displacement, price = _first_optimum(values, solvers)
    alpha, displacement = _feasible(alpha, displacement, atoms, allowance)
    return alpha, displacement * width, price * scale / width


def _first_optimum(values: Parameters, solvers: Sequence[str]) -> tuple[Array, Array, float]:
    statuses: list[str] = []
    for solver, following in zip(solvers, (*solvers[1:], None), strict=True):
        try:
            return compiled(len(values[2]), len(values[0]), solver).solve(values)
        except SolveError as error:
            statuses.append(error.status)
            if following is not None:
                message = "%s found no accurate optimum (status %s); trying %s"
                logging.getLogger("sera_solvers").warning(message, solver, error.status, following)
    raise _failure(", ".join(solvers), ", ".join(statuses))


def _feasible(alpha: Array, displacement: Array, atoms: Array, allowance: float) -> tuple[Array, Array]:
    """A feasible point near the solver's: rows of alpha sum to 1, positions in [0, 1], displacement in budget."""
    alpha = alpha.clip(0.0)
    rows = alpha.sum(1, keepdims=True)
    alpha, displacement = alpha / rows, displacement / rows
    displacement = displacement.clip(alpha * (atoms - 1.0)[:, None], alpha * atoms[:, None])
    spent = np.abs(displacement).sum()
    return alpha, displacement * min(1.0, allowance / spent if spent > 0 else 1.0)


def _attained(problem: Problem, alpha: Array, displacement: Array) -> float:
    """E_Q of the pieces under the feasible distribution: a lower bound of the optimum, whatever the solver did."""
    held = alpha > 0
    away = displacement[held] / alpha[held]
    points = np.broadcast_to(problem.xi[:, None], alpha.shape)[held] - away
    return float((alpha[held] * problem.loss.value(points.clip(*problem.support))).sum() / len(alpha))


def _shares(problem: Problem, displacement: Array, price: float) -> tuple[Array, Array]:
    """Shares of each atom on lo and on hi that displace as much; an atom on its end moved if the price is below l'."""
    (cost_low, _), (cost_high, _) = problem.to_low(), problem.to_high()
    at_low, at_high = cost_low == 0, cost_high == 0
    down = (displacement.clip(0.0).sum(1) / np.where(at_low, 1.0, cost_low)).clip(0.0, 1.0)
    up = ((-displacement).clip(0.0).sum(1) / np.where(at_high, 1.0, cost_high)).clip(0.0, 1.0 - down)
    steep_low, steep_high = -problem.end_derivatives[0], problem.end_derivatives[1]
    down = np.where(at_low, (1.0 - up) * (problem.radius > 0 and steep_low > max(price, 0.0)), down)
    up = np.where(at_high, (1.0 - down) * (problem.radius > 0 and steep_high > max(price, 0.0)), up)
    return down, up

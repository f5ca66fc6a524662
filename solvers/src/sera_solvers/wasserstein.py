"""The worst distribution within a Wasserstein-1 ball around a sample on a bounded interval."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from sera_solvers.arrays import Array, Scalar, namespace, plain
from sera_solvers.errors import InputError, unknown
from sera_solvers.filling import fill
from sera_solvers.losses import NEG_LOG, LossLike, as_loss
from sera_solvers.problem import Problem, checked
from sera_solvers.result import WorstCase

METHODS = ("exact", "program")
PIECES = 16
"""Tangents of a program."""
SOLVER = "CLARABEL"
"""Solver of a program."""


def wasserstein(
    xi: Array,
    radius: Scalar,
    *,
    support: tuple[float, float] = (0.01, 1.0),
    loss: LossLike = NEG_LOG,
    method: str = "exact",
    pieces: int | None = None,
    solver: str | None = None,
    fallback: Sequence[str] = (),
) -> WorstCase:
    """Finds sup E_Q l over the Q on [lo, hi] within Wasserstein-1 distance `radius` of the sample's distribution.

    "exact" sorts, in O(N log N), and runs where the tensor lives without waiting for it. "program" solves the finite
    convex program of the loss's affine pieces on the CPU; its value lies below the exact one by at most the result's
    `tangent_gap`, and its weights are those of the loss itself under the program's worst case.

    Args:
        xi: [N] atoms inside the support, N >= 1: array, tensor (detached) or list. Values narrower than float64 may
            overstep an end by their own rounding and are put back on it.
        radius: >= 0 and finite, in units of xi; a number, or a 0-d tensor on xi's device.
        support: (lo, hi), lo < hi; lo > 0 for `NEG_LOG`.
        loss: convex on the support: a `ConvexLoss`, an `AffineMax` or (slope, intercept) pairs.
        method: "exact" or "program".
        pieces: number of tangents that stand for a loss that is not affine, >= 2, None for 16; program only.
        solver: an installed cvxpy solver that reaches an accurate optimum, such as CLARABEL (None), HIGHS, SCIPY or
            SCS; program only.
        fallback: solvers tried in this order, each with a logged warning, when `solver` finds no accurate optimum.

    Returns:
        The worst case. At radius 0 its weights are exactly 1 and its value the empirical one bit for bit.

    Raises:
        InputError: an argument cannot be used, or `method` does not read it; on an accelerator bad values of `xi` or
            `radius` give nan instead.
        SolveError: no solver found an accurate optimum; program only.

    Source: Mohajerin Esfahani and Kuhn 2018, Theorem 4.4; for a convex loss each atom's supremum is at itself or an
    end of the support, which makes the program a fractional knapsack.
    """
    start = time.perf_counter()
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if method == "program":
        from sera_solvers.programs import installed, solve_program

        solvers = installed(SOLVER if solver is None else solver, fallback)
        return solve_program(xi, radius, support, as_loss(loss), PIECES if pieces is None else pieces, solvers)
    for name, value in (("pieces", pieces), ("solver", solver), ("fallback", fallback or None)):
        if value is not None:
            remedy = f'Leave {name} out, or set method="program".'
            raise InputError(name, "nothing, because the exact method does not read it", repr(value), remedy)
    return _exact(checked(xi, radius, support, as_loss(loss)), start)


def _exact(problem: Problem, start: float) -> WorstCase:
    xp = namespace(problem.xi)
    count = len(problem.xi)
    if problem.loss.decreasing:
        down, price = _one_ended(problem)
        ends, moved = [(down, *problem.to_low(), 1.0)], down
        up = None
    else:
        down, up, price = _two_ended(problem)
        ends, moved = [(down, *problem.to_low(), 1.0), (up, *problem.to_high(), -1.0)], down + up
    gain = sum((share * gain).sum() for share, _, gain, _ in ends) / count
    empirical = problem.values.mean()
    gradient, weights = problem.envelope(down, up, price)
    shares = [share for share, *_ in ends]
    return WorstCase(
        value=plain(empirical + gain),
        empirical_value=plain(empirical),
        dual_price=plain(price),
        moved=moved,
        weights=weights,
        gradient=gradient,
        alpha=xp.stack((1.0 - moved, *shares), 1),
        displacement=xp.stack((xp.zeros_like(moved), *(share * cost * sign for share, cost, _, sign in ends)), 1),
        xi=problem.xi,
        radius=problem.radius,
        support=problem.support,
        duality_gap=plain(problem.bound(price) - gain),
        tangent_gap=0.0,
        loss=problem.loss.name,
        method="exact",
        status="optimal",
        solve_seconds=time.perf_counter() - start,
    )


def _one_ended(problem: Problem) -> tuple[Array, Scalar]:
    """Share of each atom moved to lo, and the price; the smallest atoms go first, their slopes being steepest."""
    cost, gain = problem.to_low()
    slope = _chord(gain, cost, -problem.derivatives, -problem.end_derivatives[0])
    share, price = fill(slope, cost, problem.radius * len(cost))
    return share + problem.spoiler, price + problem.spoiler


def _two_ended(problem: Problem) -> tuple[Array, Array, Scalar]:
    """Shares moved to lo and to hi, and the price.

    Per atom the upper concave hull of (cost, gain) has at most two segments, to the near end and on to the far one;
    one straight to the far end if that is at least as steep.
    """
    xp = namespace(problem.xi)
    (cost_low, gain_low), (cost_high, gain_high) = problem.to_low(), problem.to_high()
    slope_low = _chord(gain_low, cost_low, -problem.derivatives, -problem.end_derivatives[0])
    slope_high = _chord(gain_high, cost_high, problem.derivatives, problem.end_derivatives[1])
    low_is_near = cost_low <= cost_high
    near, far = xp.where(low_is_near, slope_low, slope_high), xp.where(low_is_near, slope_high, slope_low)
    straight = far >= near
    cost_near, cost_far = xp.minimum(cost_low, cost_high), xp.maximum(cost_low, cost_high)
    onward = cost_far - cost_near
    rise = problem.end_values[1] - problem.end_values[0]
    slope_onward = xp.where(low_is_near, rise, -rise) / xp.where(onward > 0, onward, 1.0)
    # Concavity bounds the second slope by the far one; the bound holds where rounding would break it.
    slope_onward = xp.where(straight | (onward <= 0), -math.inf, xp.minimum(slope_onward, far))
    first, second = xp.maximum(near, far), slope_onward
    costs = xp.concatenate((xp.where(straight, cost_far, cost_near), onward))
    bought, price = fill(xp.concatenate((first, second)), costs, problem.radius * len(near))
    one, two = bought[: len(near)] + problem.spoiler, bought[len(near) :] + problem.spoiler
    at_near, at_far = xp.where(straight, 0.0, one - two), xp.where(straight, one, two)
    down, up = xp.where(low_is_near, at_near, at_far), xp.where(low_is_near, at_far, at_near)
    return down, up, price + problem.spoiler


def _chord(gain: Array, cost: Array, least: Array, most: float) -> Array:
    """Gain per cost, held between the slopes at its two ends, where convexity puts it.

    An atom on the end itself (cost 0) gets the slope there, so that results are continuous in xi; and atoms on one
    affine piece get exactly the same slope.
    """
    xp = namespace(gain)
    return xp.maximum(gain / xp.where(cost > 0, cost, 1.0), least).clip(max=most)

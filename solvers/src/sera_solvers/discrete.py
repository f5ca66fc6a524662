"""Worst reweighting when mass may move between the atoms of the sample, at a cost per unit of mass."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from sera_solvers.arrays import (
    FINITE,
    Array,
    Scalar,
    as_float64,
    as_matrix,
    as_scalar,
    finite,
    is_tensor,
    namespace,
    on_host,
    within,
)
from sera_solvers.errors import InputError, SolveError
from sera_solvers.result import WorstWeights
from sera_solvers.reweighting import below_top, worst_weights

HALVINGS = 128
"""Bisection steps on the price; a host stops earlier, when the bracket is two neighbouring floats."""
ROUNDING = 4 * float(np.finfo(np.float64).eps)
"""Scores closer than this, in units of the losses' range, are equal."""
STEEPEST = 1e300
"""The largest price looked at, in units of the losses' range."""
TOLERANCE = 1e-10
"""Feasibility of the linear program."""


@np.errstate(all="ignore")
def wasserstein_discrete(losses: Array, costs: Array, radius: Scalar, *, cap: Scalar | None = None) -> WorstWeights:
    """Worst weights within a Wasserstein ball whose distributions live on the sample: max mean(w l).

    Mass 1/N sits on each atom; moving a share pi_ij from atom i to atom j costs pi_ij c_ij, and the total cost is at
    most the radius: max sum_ij pi_ij l_j subject to sum_j pi_ij = 1/N, sum_ij pi_ij c_ij <= radius, pi >= 0.

    Without `cap` the one-dimensional dual, min over lambda >= 0 of lambda radius + mean_i max_j (l_j - lambda c_ij),
    is solved by bisection, without waiting for a device, where input that the host would refuse makes every result
    nan. Destinations of equal loss and cost share equally. With `cap` a linear program is solved on the host: tensors
    are copied there and back, and of several optima the solver's choice is returned.

    Args:
        losses: [N] finite.
        costs: [N, N] finite, >= 0, zero diagonal, the cost from row to column; the same kind of array as losses.
        radius: >= 0, in units of the costs.
        cap: largest weight an atom may get, >= 1; None for no limit.

    Returns:
        weights w_j = N sum_i pi_ij = N dV/dl_j for fixed costs, mean 1; exactly 1 for constant losses, and at radius 0
        unless mass moves to a larger loss at no cost. `dual_price` is lambda, what one more unit of radius would gain.

    Raises:
        InputError: an argument out of range or of the wrong shape; costs with a diagonal other than zero.
        SolveError: the linear program was not solved (with `cap` only).

    Source: Mohajerin Esfahani and Kuhn 2018, Theorem 4.2, with the support restricted to the sample.
    """
    given = losses
    if cap is not None:
        losses, costs, radius = _on_host(losses), _on_host(costs), _on_host(radius)
    losses, costs, spoiler = _checked(losses, costs)
    radius = as_scalar(radius, "radius") + spoiler + namespace(losses).zeros_like(losses[0])
    if cap is None:
        weights, price = _bisected(losses, costs, radius)
        return worst_weights(losses, weights + 0 * radius, price + 0 * radius, "wasserstein_discrete")
    limit = as_scalar(_on_host(cap), "cap", 1.0, math.inf)
    weights, price = _programmed(losses, costs, float(radius), min(limit, float(len(losses))))
    if is_tensor(given):
        xp = namespace(given)
        move = partial(xp.as_tensor, dtype=xp.float64, device=given.device)
        losses, weights, price = map(move, (losses, weights, price))
    return worst_weights(losses, weights, price, "wasserstein_discrete")


def _on_host(x: Array | Scalar) -> Array | Scalar:
    return x.detach().cpu().numpy() if is_tensor(x) else x


def _checked(losses: Array, costs: Array) -> tuple[Array, Array, Scalar]:
    losses = as_float64(losses, "losses")
    if is_tensor(losses) != is_tensor(costs):
        raise InputError("costs", f"the kind of array that losses is, {type(losses).__name__}", type(costs).__name__)
    costs = as_matrix(costs, "costs")
    size = len(losses)
    if costs.shape != (size, size):
        raise InputError("costs", f"shape ({size}, {size}), a row and a column per loss", f"shape {tuple(costs.shape)}")
    spoiler = finite(losses, "losses") + within(costs, "costs", 0.0, FINITE[1])
    diagonal = namespace(costs).diagonal(costs)
    if on_host(costs) and not (diagonal == 0).all():
        first = int(np.argmax(np.asarray(diagonal) != 0))
        got = f"{float(diagonal[first])!s} at index {first}, {first}"
        raise InputError("costs", "a zero diagonal, because staying is free", got)
    return losses, costs, spoiler + within(diagonal, "costs", 0.0, 0.0)


def _bisected(losses: Array, costs: Array, radius: Scalar) -> tuple[Array, Scalar]:
    """Weights and price from the dual: a mixture of the best moves just below and just above the optimal price."""
    xp = namespace(losses)
    depth, spread = below_top(losses)
    gains = (depth[:, None] - depth[None, :]).clip(0.0)
    low = xp.zeros_like(spread)
    high = xp.where(costs > 0, gains / costs, 0.0).max().clip(0.0, STEEPEST)
    free = _spent(depth, costs, low) <= radius
    for _ in range(HALVINGS):
        middle = low + (high - low) / 2
        if on_host(losses) and not low < middle < high:
            break
        dear = _spent(depth, costs, middle) > radius
        low, high = xp.where(dear, middle, low), xp.where(dear, high, middle)
    cheap, spent = _moves(depth, costs, high)
    far, most = _moves(depth, costs, low)
    mix = ((radius - spent) / xp.where(most > spent, most - spent, 1.0)).clip(0.0, 1.0)
    return cheap + mix * (far - cheap), xp.where(free, 0.0, high * spread)


def _best(depth: Array, costs: Array, price: Scalar) -> tuple[Array, Array]:
    """[N, N] whether a move is optimal at the price, up to rounding, and the lowest cost of such a move, [N, 1]."""
    xp = namespace(depth)
    scores = -depth[None, :] - price * costs
    best = scores >= xp.amax(scores, 1)[:, None] - ROUNDING
    return best, xp.amin(xp.where(best, costs, np.inf), 1)[:, None]


def _spent(depth: Array, costs: Array, price: Scalar) -> Scalar:
    """Mean cost of the optimal moves at the price, the cheapest ones where several are optimal."""
    return _best(depth, costs, price)[1].mean()


def _moves(depth: Array, costs: Array, price: Scalar) -> tuple[Array, Scalar]:
    """Weights [N] and mean cost of the cheapest optimal moves at the price; equal destinations share equally."""
    xp = namespace(depth)
    best, cheapest = _best(depth, costs, price)
    chosen = (best & (costs == cheapest)) * xp.ones_like(costs)
    return (chosen / chosen.sum(1)[:, None]).sum(0), cheapest.mean()


def _programmed(losses: Array, costs: Array, radius: float, cap: float) -> tuple[Array, float]:
    """Weights and price from the linear program in p_ij = N pi_ij, with no column of p above the cap."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array, eye_array, kron, vstack

    size = len(losses)
    depth, spread = below_top(losses)
    if not depth.any():  # every plan is optimal; stay
        return np.ones(size), 0.0
    unit = float(costs.max()) or 1.0
    prices = (costs / unit).ravel()
    budget = size * min(radius / unit, 1.0)
    ones, eye = csr_array(np.ones((1, size))), eye_array(size, format="csr")
    solved = linprog(
        np.tile(depth, size),
        A_ub=vstack([csr_array(prices[None, :]), kron(ones, eye)], format="csr"),
        b_ub=np.concatenate(([budget], np.full(size, cap))),
        A_eq=kron(eye, ones, format="csr"),
        b_eq=np.ones(size),
        bounds=(0.0, None),
        method="highs",
        options={"primal_feasibility_tolerance": TOLERANCE, "dual_feasibility_tolerance": TOLERANCE},
    )
    if solved.status != 0:
        raise SolveError("HiGHS", str(solved.message), "Scale losses and costs to about 1, or leave out cap.")
    weights = solved.x.reshape(size, size).clip(0.0).sum(0)
    weights = weights / weights.mean()
    return weights, float(-solved.ineqlin.marginals[0] * spread / unit)

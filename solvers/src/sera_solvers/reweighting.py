"""What the reweighting solvers share: scaling the losses, searching a multiplier, and building the result."""

from __future__ import annotations

from collections.abc import Callable

from sera_solvers.arrays import Array, Scalar, namespace, plain
from sera_solvers.result import WorstWeights

HALVINGS = 64
"""Bisection steps on a logarithm: they exhaust float64 on every bracket used here."""


def worst_weights(losses: Array, weights: Array, price: Scalar, name: str, value: Scalar | None = None) -> WorstWeights:
    """The result for given weights; its value is the weighted mean of the losses unless `value` says otherwise.

    The value is summed around the largest loss, is never below the empirical one by a rounding error, and is the
    empirical one bit for bit where all weights are 1.
    """
    xp = namespace(losses)
    empirical, top = losses.mean(), losses.max()
    if value is None:
        value = xp.maximum(top - (weights * (top - losses)).mean(), empirical)
    value = xp.where((weights == 1).all(), empirical, value)
    return WorstWeights(plain(value), plain(empirical), weights, plain(price), name)


def below_top(losses: Array) -> tuple[Array, Scalar]:
    """How far each loss lies below the largest, in units of the losses' range: [N] in [0, 1], and that range.

    Constant losses give zeros and the range 1.
    """
    xp = namespace(losses)
    depth = losses.max() - losses
    spread = depth.max()
    spread = xp.where(spread > 0, spread, xp.ones_like(spread))
    return depth / spread, spread


def topmost(depth: Array) -> tuple[Scalar, Array, Scalar]:
    """N over the number m of maximisers, the weights N / m on them, and the depth of the second largest loss."""
    xp = namespace(depth)
    at_top = (depth == 0) * xp.ones_like(depth)
    share = len(depth) / at_top.sum()
    gap = xp.where(depth > 0, depth, xp.ones_like(depth)).min()
    return share, at_top * share, gap


def crossing(excess: Callable[[Scalar], Scalar], low: Scalar, high: Scalar, level: Scalar) -> Scalar:
    """The smallest t in [low, high] found with excess(t) <= level, excess decreasing, by bisection of log t."""
    xp = namespace(low)
    low, high = xp.log(low), xp.log(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        outside = excess(xp.exp(middle)) > level
        low, high = xp.where(outside, middle, low), xp.where(outside, high, middle)
    return xp.exp(high)


def log_mean_exp(x: Array) -> Scalar:
    """The log of mean exp(x) for x <= 0 with a maximum of 0, accurate also for tiny x."""
    xp = namespace(x)
    shortfall = xp.expm1(x).mean()
    return xp.where(shortfall > -1 / 2, xp.log1p(shortfall), xp.log(xp.exp(x).mean()))

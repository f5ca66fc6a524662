"""The fractional knapsack that every closed form shares."""

from __future__ import annotations

from sera_solvers.arrays import Array, Scalar, namespace


def fill(slopes: Array, costs: Array, budget: Scalar) -> tuple[Array, Scalar]:
    """Buys segments in order of decreasing slope until the budget is spent: max sum_j f_j slope_j cost_j.

    Segments of exactly equal slope share what is left in equal fractions, so the result never depends on the order.
    Nothing waits for a device. NaN is not looked for: check first (`arrays.finite`) and add the spoiler to the result.

    Args:
        slopes: [M] float64, gain per unit of cost; segments with slope <= 0 (also -inf) are never bought.
        costs: [M] float64, >= 0.
        budget: >= 0, a float or a 0-d tensor on the slopes' device.

    Returns:
        fractions: [M] in [0, 1], sum_j f_j cost_j <= budget. A segment of cost 0 is bought, when budget > 0, if its
            slope exceeds the price; at budget 0 nothing is.
        price: what one more unit of budget would gain (the right derivative of the optimum), 0 when all is bought.
    """
    xp = namespace(slopes)
    order = xp.argsort(-slopes)
    sorted_slopes, spent = slopes[order], xp.cumsum(costs[order], 0)
    nothing = xp.zeros_like(spent[:1])
    marginal = xp.searchsorted(spent, budget, side="right")  # the first segment that does not fit whole
    price = xp.take(xp.concatenate((sorted_slopes, nothing)), marginal).clip(0.0)
    spent = xp.concatenate((nothing, spent))
    descending = -sorted_slopes
    before = xp.take(spent, xp.searchsorted(descending, -price, side="left"))
    after = xp.take(spent, xp.searchsorted(descending, -price, side="right"))
    group = after - before
    share = ((budget - before) / xp.where(group > 0, group, 1.0)).clip(0.0, 1.0)
    bought = xp.where(slopes == price, share, 1.0) * (slopes >= price)
    return bought * ((slopes > 0) & (budget > 0)), price

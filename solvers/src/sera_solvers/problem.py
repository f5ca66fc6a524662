"""A checked Wasserstein problem and the formulas its two methods share: dual bound, envelope gradient, weights."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from sera_solvers.arrays import Array, Scalar, as_float64, as_scalar, is_tensor, namespace, on_host, resolution, within
from sera_solvers.losses import Loss, at_ends, check_support
from sera_solvers.result import WorstCase


@dataclass(frozen=True, eq=False)
class Problem:
    """Atoms, ball, support and loss, with the loss where every method needs it.

    Attributes:
        xi: [N] float64 atoms inside the support.
        radius: >= 0.
        support: (lo, hi).
        loss: the loss.
        values: [N] l(xi).
        derivatives: [N] l'(xi).
        end_values: l(lo), l(hi).
        end_derivatives: l'(lo), l'(hi).
        spoiler: 0; on an accelerator nan for bad `xi` or `radius`.
    """

    xi: Array
    radius: Scalar
    support: tuple[float, float]
    loss: Loss
    values: Array
    derivatives: Array
    end_values: tuple[float, float]
    end_derivatives: tuple[float, float]
    spoiler: Scalar

    def to_low(self) -> tuple[Array, Array]:
        """Cost and gain, [N] each, of moving each atom to lo."""
        return self.xi - self.support[0], self.end_values[0] - self.values

    def to_high(self) -> tuple[Array, Array]:
        """Cost and gain, [N] each, of moving each atom to hi."""
        return self.support[1] - self.xi, self.end_values[1] - self.values

    def bound(self, price: Scalar) -> Scalar:
        """The dual function minus the empirical value: no worst case is worse by more, at any price >= 0.

        A radius beyond the width of the support allows no more than the width, and a price of rounding errors times it
        would be a bound of nothing.

        Source: Mohajerin Esfahani and Kuhn 2018, Theorem 4.2, with the supremum of a convex loss at xi, lo or hi.
        """
        width = self.support[1] - self.support[0]
        reach = self.radius.clip(max=width) if is_tensor(self.radius) else min(self.radius, width)
        cost, gain = self.to_low()
        best = (gain - price * cost).clip(0.0)
        if not self.loss.decreasing:
            cost, gain = self.to_high()
            best = namespace(best).maximum(best, gain - price * cost)
        return price * reach + best.mean()

    def steepest(self) -> float:
        """The largest gain per cost of any move, at least 0: the price at radius 0 (NumPy only)."""
        moves = [self.to_low()] if self.loss.decreasing else [self.to_low(), self.to_high()]
        return max(0.0, *(float((gain[cost > 0] / cost[cost > 0]).max(initial=0.0)) for cost, gain in moves))

    def envelope(self, down: Array, up: Array | None, price: Scalar) -> tuple[Array, Array]:
        """N dV/dxi and its ratio to l'(xi), [N] each, when shares `down` and `up` of each atom sit on lo and hi.

        The share that stays moves with xi_i; the others hold their end, and xi_i changes only what they cost.
        """
        xp, slope = namespace(self.xi), self.derivatives
        if up is None:
            gradient = (1.0 - down) * slope - down * price
        else:
            gradient = (1.0 - down - up) * slope + (up - down) * price
        flat = slope == 0
        level = xp.where(gradient == 0, 1.0, np.nan)
        return gradient, xp.where(flat, level, gradient / xp.where(flat, 1.0, slope))


def checked(raw: Array, radius: Scalar, support: tuple[float, float], loss: Loss) -> Problem:
    """The problem of `wasserstein`'s arguments.

    Raises:
        InputError: naming `xi`, `radius`, `support` or `loss`.
    """
    low, high = check_support(support, loss)
    xi = as_float64(raw, "xi")
    slack = resolution(raw)
    remedy = "Clamp it to the support, or widen the support."
    spoiler = within(xi, "xi", low - slack * abs(low), high + slack * abs(high), remedy)
    radius = as_scalar(radius, "radius")
    if slack:
        xi = xi.clip(low, high)
    if not on_host(xi):
        spoiler = spoiler + 0.0 * radius
        xi = xi + spoiler
    return posed(xi, radius, (low, high), loss, spoiler)


def posed(xi: Array, radius: Scalar, support: tuple[float, float], loss: Loss, spoiler: Scalar) -> Problem:
    """The problem of arguments that were checked before.

    Raises:
        InputError: naming `loss`, when it is not finite at the ends of the support.
    """
    values, derivatives = at_ends(loss, support)
    return Problem(xi, radius, support, loss, loss.value(xi), loss.derivative(xi), values, derivatives, spoiler)


def returned(result: WorstCase, raw: Array) -> WorstCase:
    """`result` as it is, or as float64 tensors on the device of the tensor `raw`."""
    if not is_tensor(raw):
        return result
    torch = namespace(raw)
    arrays = {f.name: getattr(result, f.name) for f in fields(result)}
    numbers = ("value", "empirical_value", "dual_price", "duality_gap")
    for name, value in arrays.items():
        if isinstance(value, np.ndarray) or name in numbers:
            arrays[name] = torch.tensor(value, dtype=torch.float64, device=raw.device)
    return WorstCase(**arrays)

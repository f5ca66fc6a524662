"""Worst reweightings of a sample of losses: divergence balls, tail averages and the soft minimum of Dr. DPO.

Every function takes one loss per atom and returns weights with mean 1 such that N dV/dl_i = weights_i: training on
the weighted losses descends the value. NumPy in, NumPy out; tensors in, detached float64 tensors on the same device
out, without waiting for it: there, input that the host would refuse makes every result nan.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sera_solvers.arrays import Array, Scalar, as_float64, as_scalar, finite, namespace, plain
from sera_solvers.errors import InputError
from sera_solvers.result import WorstWeights
from sera_solvers.reweighting import below_top, crossing, log_mean_exp, topmost, worst_weights

SERIES_BELOW = 1e-2
"""Where e^u (u - 1) + 1 is summed as a series, because the formula would cancel."""
TEMPERATURES = (1e-300, 1e100)
"""Range of temperatures in units of the losses' range; results no longer change beyond it."""
FLUSH = 800.0
"""exp(-FLUSH) is 0 in float64."""


@np.errstate(all="ignore")
def kl(losses: Array, *, radius: Scalar | None = None, temperature: Scalar | None = None) -> WorstWeights:
    """Worst weights against a Kullback-Leibler ball, or against a Kullback-Leibler penalty.

    Args:
        losses: [N] finite.
        radius: max mean(w l) subject to mean(w log w) <= radius, in nats, >= 0. From log(N / m) on, m the number of
            atoms of largest loss, the weights are N / m on those and 0 elsewhere.
        temperature: instead of a radius, max mean(w l) - temperature mean(w log w); > 0, may be infinite.

    Returns:
        weights N softmax(l / tau), exactly 1 at radius 0, infinite temperature or constant losses. `dual_price` is tau,
        for a radius what one more nat would gain: inf at radius 0, 0 when the ball holds the worst weights of all. The
        value is the maximum: for a temperature tau log mean exp(l / tau).

    Raises:
        InputError: not exactly one of radius and temperature; one out of range; losses empty, not 1-D or not finite.

    Source: Hu and Hong 2013, the dual in one multiplier of the KL-constrained worst case.
    """
    losses = as_float64(losses, "losses")
    if (radius is None) == (temperature is None):
        got = "neither" if radius is None else "both"
        raise InputError("radius", "exactly one of radius and temperature", got, "Give one of the two.")
    if radius is None:
        return _tilted(losses, temperature, "kl", sign=1.0)
    xp = namespace(losses)
    radius = as_scalar(radius, "radius") + finite(losses, "losses") + xp.zeros_like(losses[0])
    depth, spread = below_top(losses)
    limit, extreme, gap = topmost(depth)
    inside = xp.where(radius > 0, radius, 1.0)
    # mean(w log w) <= 1 / (8 t^2) because the variance of losses in [0, 1] is at most 1/4
    high = (8 * inside) ** -0.5
    low = xp.minimum(gap / FLUSH, high)
    scaled = crossing(lambda t: _divergence(_log_weights(depth, t)), low, high, inside)
    full = radius >= xp.log(limit)
    weights = xp.where(full, extreme, xp.where(radius > 0, xp.exp(_log_weights(depth, scaled)), 1.0))
    price = xp.where(full, 0.0, xp.where(radius > 0, scaled * spread, np.inf))
    return worst_weights(losses, weights + 0 * radius, price + 0 * radius, "kl")


@np.errstate(all="ignore")
def dr_dpo(losses: Array, temperature: Scalar) -> WorstWeights:
    """Weights of Dr. DPO: atoms of large loss, the likely mislabelled, count less.

    The value is the soft minimum -b' log mean exp(-l / b') = min over w of mean(w l) + b' mean(w log w): a best case,
    at most the empirical value, and the opposite of every other function here.

    Args:
        losses: [N] finite.
        temperature: b' > 0, in units of the losses; infinite gives weights of exactly 1.

    Returns:
        weights N softmax(-l / b'); `dual_price` is the temperature.

    Raises:
        InputError: temperature not positive; losses empty, not 1-D or not finite.

    Source: Wu et al. 2024, the Dr. DPO objective.
    """
    return _tilted(as_float64(losses, "losses"), temperature, "dr_dpo", sign=-1.0)


@np.errstate(all="ignore")
def chi_square(losses: Array, radius: Scalar) -> WorstWeights:
    """Worst weights against a chi-square ball: max mean(w l) subject to mean((w - 1)^2) <= radius and w >= 0.

    Args:
        losses: [N] finite.
        radius: >= 0, no unit: the variance of the weights (2 rho / n in the source). From N / m - 1 on, m the number
            of atoms of largest loss, the weights are N / m on those and 0 elsewhere.

    Returns:
        weights 1 + sqrt(radius) (l - mean) / std where none of these is negative, else proportional to the part of
        l above a threshold; exactly 1 at radius 0 or constant losses. `dual_price` is what one more unit of radius
        would gain: inf at radius 0, 0 when the ball holds the worst weights of all.

    Raises:
        InputError: radius negative or not finite; losses empty, not 1-D or not finite.

    Source: Namkoong and Duchi 2017, Theorem 1 (value = mean + sqrt(radius variance) while no weight is cut at 0).
    """
    losses = as_float64(losses, "losses")
    xp = namespace(losses)
    radius = as_scalar(radius, "radius") + finite(losses, "losses") + xp.zeros_like(losses[0])
    depth, spread = below_top(losses)
    limit, extreme, gap = topmost(depth)
    mean = depth.mean()
    variance = ((depth - mean) ** 2).mean()
    variance = xp.where(variance > 0, variance, 1.0)
    linear = 1 + (radius / variance) ** 0.5 * (mean - depth)  # Namkoong and Duchi 2017, Theorem 1

    def excess(threshold: Scalar) -> Scalar:
        above = (threshold - depth).clip(0.0)
        return ((above / above.mean() - 1) ** 2).mean()

    threshold = crossing(excess, gap, xp.ones_like(gap), radius)
    above = (threshold - depth).clip(0.0)
    full, uncut = radius >= limit - 1, linear.min() >= 0
    weights = xp.where(full, extreme, xp.where(uncut, linear, above / above.mean()))
    slack = xp.where(uncut, (variance / radius) ** 0.5, above.mean()) / 2
    price = xp.where(full, 0.0, slack * spread)
    return worst_weights(losses, weights + 0 * radius, price + 0 * radius, "chi_square")


@np.errstate(all="ignore")
def cvar(losses: Array, level: Scalar) -> WorstWeights:
    """Mean loss of the worst share of the atoms: max mean(w l) subject to w <= 1 / level.

    Args:
        losses: [N] finite.
        level: the share of the mass averaged, in (0, 1]; 1 is the plain mean, up to m / N the largest loss, m the
            number of atoms that have it.

    Returns:
        weights 1 / level above the value at risk and 0 below; atoms on it share what is left. Exactly 1 at level 1 or
        constant losses. `dual_price` is (value - value at risk) / level: what one unit less of level would gain.

    Raises:
        InputError: level outside (0, 1]; losses empty, not 1-D or not finite.

    Source: Rockafellar and Uryasev 2000, Theorem 1.
    """
    losses = as_float64(losses, "losses")
    xp = namespace(losses)
    level = as_scalar(level, "level", 0.0, 1.0, above=True) + finite(losses, "losses") + xp.zeros_like(losses[0])
    ascending = losses[xp.argsort(losses)]
    upto = xp.searchsorted(ascending, losses, side="right")
    ties = upto - xp.searchsorted(ascending, losses, side="left")
    left = len(losses) - (len(losses) - upto) / level
    weights = xp.minimum((left / ties).clip(0.0), 1 / level)
    at_risk = xp.where(weights > 0, losses, np.inf).min()
    result = worst_weights(losses, weights, 0 * level, "cvar")
    return replace(result, dual_price=plain((result.value - at_risk) / level))


def _tilted(losses: Array, temperature: Scalar, name: str, sign: float) -> WorstWeights:
    """N softmax(sign l / tau) and sign tau log mean exp(sign l / tau)."""
    xp = namespace(losses)
    temperature = as_scalar(temperature, "temperature", 0.0, np.inf, above=True)
    temperature = temperature + finite(losses, "losses") + xp.zeros_like(losses[0])
    gains = sign * losses
    depth, spread = below_top(gains)
    scaled = (temperature / spread).clip(*TEMPERATURES)
    # Wu et al. 2024, Dr. DPO objective; Hu and Hong 2013 with the other sign
    value = sign * (gains.max() + spread * scaled * log_mean_exp(-depth / scaled))
    weights = xp.exp(_log_weights(depth, scaled))
    return worst_weights(losses, weights, temperature, name, value)


def _log_weights(depth: Array, temperature: Scalar) -> Array:
    """[N] log of N softmax(-depth / temperature)."""
    x = -depth / temperature
    return x - log_mean_exp(x)


def _divergence(log_weights: Array) -> Scalar:
    """mean(w log w) as mean(w log w - w + 1), whose terms do not cancel."""
    xp = namespace(log_weights)
    u = log_weights
    exact = xp.exp(u) * (u - 1) + 1
    series = u**2 * (1 / 2 + u * (1 / 3 + u * (1 / 8 + u * (1 / 30 + u / 144))))
    return xp.where(abs(u) < SERIES_BELOW, series, exact).mean()

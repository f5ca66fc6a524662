"""A radius from the sample itself."""

from __future__ import annotations

import numpy as np

from sera_solvers.arrays import Array, Scalar, as_float64, finite, is_tensor, namespace, plain
from sera_solvers.errors import InputError


def bootstrap_radius(xi: Array, confidence: float, *, replicates: int = 200, seed: int = 0) -> Scalar:
    """Finds how far, in Wasserstein-1 distance, a sample of this size strays from its source: a radius for a ball.

    The `confidence` quantile, over bootstrap resamples, of the distance between resample and sample. The order of xi
    does not matter, and the same seed gives the same resamples for arrays and tensors.

    Args:
        xi: [N] finite values.
        confidence: in [0, 1].
        replicates: number of resamples, >= 1.
        seed: of the resamples, >= 0.

    Returns:
        The radius, >= 0 and in units of xi: a float, or a 0-d tensor on xi's device; 0 for a single atom.

    Raises:
        InputError: naming the argument; on an accelerator bad values of `xi` give nan instead.

    Source: Efron 1979 (the bootstrap); the radius as a confidence region, Mohajerin Esfahani and Kuhn 2018, Section 3.
    """
    values = as_float64(xi, "xi")
    spoiler = finite(values, "xi")
    if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 <= confidence <= 1:
        raise InputError("confidence", "a number in [0, 1]", repr(confidence))
    for name, value, least in (("replicates", replicates, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InputError(name, f"an integer >= {least}", repr(value))
    xp, count = namespace(values), len(values)
    ranked = xp.sort(values)[0] if is_tensor(values) else np.sort(values)
    gaps = ranked[1:] - ranked[:-1]
    generator = np.random.default_rng(seed)
    distances = [(_like(_strayed(generator, count), gaps) * gaps).sum() for _ in range(replicates)]
    return plain(xp.quantile(xp.stack(distances), float(confidence)) + spoiler)


def _strayed(generator: np.random.Generator, count: int) -> Array:
    """|F*(x) - F(x)| between neighbouring ranks, [N - 1], of one resample; times the gaps it sums to the distance."""
    drawn = np.bincount(generator.integers(count, size=count), minlength=count)
    return np.abs(np.cumsum(drawn - 1)[:-1]) / count


def _like(values: Array, x: Array) -> Array:
    return namespace(x).from_numpy(values).to(x.device, non_blocking=True) if is_tensor(x) else values

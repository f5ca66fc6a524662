"""Three readings of the gradient of a worst-case loss, as weights per pair.

A weight is relative to the base loss l(xi) = -log xi, whose derivative is -1 / xi: weight times l'(xi_i) is N times
the reading's derivative by xi_i. Without any mass moved all three are exactly 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from sera_solvers import WorstCase

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_MASS = 1e-6
_SAME_PLACE = 1e-4


def envelope(case: WorstCase) -> Tensor:
    """The gradient of the optimal value, which counts the price of the support's bounds: float64 [n].

    (1 - f) + f lambda xi with f the share of the pair's mass that moves and lambda the dual price: 1 for confident
    pairs, above 1 for hard ones, towards 0 for the hopeless at the support's lower end.

    Source: envelope theorem on Mohajerin Esfahani & Kuhn 2018, Theorem 4.2.
    """
    weights: Tensor = case.weights
    return weights


def expectation(case: WorstCase) -> Tensor:
    """The gradient of E_Q[l] with masses alpha and displacements q held constant: sum_k alpha_k xi / x_k, float64 [n].

    The x_k are the places of the pair's atoms. Mass that moved to the lower end counts xi / lo, so that hard pairs
    weigh the less the closer they are to it, and the support's bound has no price.
    """
    weights: Tensor = (case.alpha * (case.xi[:, None] / case.positions)).sum(1)
    return weights


def literal(case: WorstCase) -> Tensor:
    """The gradient of sum_k -log(alpha_k x_k) with alpha and q held constant: sum of xi / x_k over atoms, float64 [n].

    Inside the logarithm alpha becomes an additive constant, so an atom counts fully however little mass it has. Atoms
    of one pair that lie within 1e-4 of the support's width count as one; those with less mass than 1e-6 do not count.
    """
    masses, places = _merged(case.alpha, case.positions, _SAME_PLACE * (case.support[1] - case.support[0]))
    present = masses > _LEAST_MASS
    ratios = case.xi[:, None] / torch.where(present, places, 1.0)
    return torch.where(present, ratios, 0.0).sum(1)


READINGS: Mapping[str, Callable[[WorstCase], Tensor]] = MappingProxyType(
    {"envelope": envelope, "expectation": expectation, "literal": literal}
)


def _merged(masses: Tensor, places: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Atoms of one row at one place joined: their mass and its centre, [n, k] each, unused columns of mass 0."""
    places, order = places.sort(dim=1)
    masses = masses.gather(1, order)
    apart = torch.zeros_like(places, dtype=torch.int64)
    apart[:, 1:] = (places.diff(dim=1) > tolerance).to(torch.int64)
    group = apart.cumsum(1)
    joined = torch.zeros_like(masses).scatter_add(1, group, masses)
    moments = torch.zeros_like(masses).scatter_add(1, group, masses * places)
    centres = moments / torch.where(joined > 0, joined, 1.0)
    return joined, torch.where(joined > 0, centres, 1.0)

"""The worst case when mass may only move between the pairs of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import torch

import sera_solvers
from sera_core.options import require_choice, require_number
from sera_core.protocols import Needs
from sera_core.records import BatchStats, Weighted
from sera_plugin_dro.arrays import Metric, failed, steady, weighted
from sera_plugin_dro.schedule import Schedule, radius_at, require_radius

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class WassersteinDiscrete:
    """Weighs pairs by the worst distribution on the batch's own pairs within a Wasserstein ball.

    It up-weights hard pairs: a pair passes its weight on to harder ones, at the price of their distance. Weights have
    mean 1. Unlike `wasserstein` nothing is assumed about pairs that are not in the batch.

    Options: `radius` >= 0, a number or a `Schedule`, in units of the cost; 0 gives equal weights. `cost` is the
    statistic whose absolute difference is the distance of two pairs: ``confidence``, in [0, 1], or ``margin``. `cap`
    >= 1 is the largest weight of a pair, None for no limit; with it a linear program is solved on the CPU, and of
    several optima its choice is taken, averaged over pairs that are alike.

    Raises:
        ConfigError: `radius` negative or not finite, `cost` neither word, `cap` below 1.

    Source: Mohajerin Esfahani & Kuhn 2018, Theorem 4.2, with the support restricted to the sample.
    """

    radius: float | Schedule = 0.05
    cost: Literal["confidence", "margin"] = "confidence"
    cap: float | None = None

    def __post_init__(self) -> None:
        component = "reweighter 'wasserstein_discrete'"
        require_radius(component, self.radius)
        require_choice(component, "cost", self.cost, ("confidence", "margin"))
        if self.cap is not None:
            expected = "a finite number >= 1, the largest weight of a pair (weights have mean 1), or null"
            require_number(component, "cap", self.cap, low=1, expected=expected)

    @property
    def needs(self) -> Needs:
        """Losses and confidences or margins of the whole effective batch."""
        return Needs(whole_batch=True)

    @classmethod
    def neutral(cls) -> Self:
        """The setting that changes nothing: radius 0."""
        return cls(radius=0.0)

    def weights(self, stats: BatchStats) -> Tensor:
        """Weights [n] >= 0 of mean 1, without gradient."""
        return self.weigh(stats).weights

    def weigh(self, stats: BatchStats) -> Weighted:
        """Weights [n], with `radius`, `worst_case_loss`, `empirical_loss` and `dual_price` where mass may move.

        Raises:
            ModelError: statistics that are not finite, or a linear program that was not solved.
        """
        radius = radius_at(self.radius, stats.progress)
        losses = steady(stats.losses)
        if radius == 0:
            # Between pairs at one place with different losses mass would move at no price.
            mean = losses.mean()
            metrics: dict[str, Metric] = {"radius": radius, "worst_case_loss": mean, "empirical_loss": mean}
            return weighted(torch.ones_like(losses), stats.losses, metrics)
        places = steady(stats.confidences if self.cost == "confidence" else stats.margins)
        costs = (places[:, None] - places[None, :]).abs()
        try:
            case = sera_solvers.wasserstein_discrete(losses, costs, radius, cap=self.cap)
        except sera_solvers.SolversError as error:
            remedy = "Lower training.learning_rate, or remove cap."
            raise failed("reweighter 'wasserstein_discrete'", error, remedy) from error
        weights = case.weights if self.cap is None else _shared(case.weights, losses, places)
        metrics = {
            "radius": radius,
            "dual_price": case.dual_price,
            "worst_case_loss": case.value,
            "empirical_loss": case.empirical_value,
        }
        return weighted(weights, stats.losses, metrics)


def _shared(weights: Tensor, losses: Tensor, places: Tensor) -> Tensor:
    """The mean weight of the pairs that are alike in loss and place, as optimal as the solver's choice among them."""
    _, kind = torch.unique(torch.stack((losses, places)), dim=1, return_inverse=True)
    total = torch.zeros_like(weights).index_add(0, kind, weights)
    count = torch.zeros_like(weights).index_add(0, kind, torch.ones_like(weights))
    return (total / count.clamp_min(1))[kind]

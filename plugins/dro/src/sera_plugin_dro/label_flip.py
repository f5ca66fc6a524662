"""The worst case when labels may be wrong: an adversary flips them at a price."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch

import sera_solvers
from sera_core.options import require_positive
from sera_core.protocols import Needs
from sera_core.records import PairBatch
from sera_plugin_dro.arrays import failed, steady
from sera_plugin_dro.schedule import Schedule, radius_at, require_radius

if TYPE_CHECKING:
    from torch import Tensor

# Half the spacing of float32 below 1: a confidence that rounded to 1 stays the largest, with a finite margin.
_CLEARANCE = 2.0**-25
# Confidences closer to 1/2 than this are ties there (see `steady`), whatever their rounding errors average to.
_UNDECIDED = 2.0**-17


@dataclass(frozen=True)
class LabelFlip:
    """Lets an adversary flip labels within a budget, and trains against the flips that hurt most.

    Flipping a pair raises the logistic loss by its margin beta h = logit(confidence), so the most confident labels
    flip first, equally confident ones in equal shares. Labels the policy disagrees with never flip, nor those whose
    confidence is 1/2 to within 2^-17. The policy is kept from becoming sure of any label, the right answer to label
    noise where moving confidences, as `wasserstein` does, is not. Confidences are read as the objective gives them; for
    dpo the flips are exactly the worst.

    Options: `radius` >= 0, a number or a `Schedule`: the budget per pair; 0 changes nothing. `cost` > 0, the price of
    flipping one label: at most `radius` / `cost` of the batch is flipped.

    Raises:
        ConfigError: `radius` negative or not finite, `cost` not a finite number above 0.

    Source: Shafieezadeh-Abadeh, Mohajerin Esfahani & Kuhn 2015 (distributionally robust logistic regression), the
    ambiguity set of Theorem 1 with features fixed.
    """

    radius: float | Schedule = 0.05
    cost: float = 1.0

    def __post_init__(self) -> None:
        require_radius("smoother 'label_flip'", self.radius)
        require_positive("smoother 'label_flip'", "cost", self.cost, typical="1, so that radius is a share of pairs")

    @property
    def needs(self) -> Needs:
        """Confidences of the whole effective batch."""
        return Needs(whole_batch=True)

    @classmethod
    def neutral(cls) -> Self:
        """The setting that changes nothing: radius 0."""
        return cls(radius=0.0)

    def flip_weights(self, confidence: Tensor, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """(1 - f, f), [b] each, f in [0, 1] the flipped share of a pair, without gradient; (1, 0) at radius 0.

        Raises:
            ModelError: confidences that are not finite.
        """
        radius = radius_at(self.radius, batch.progress)
        confidences = steady(confidence).clamp(_CLEARANCE, 1 - _CLEARANCE)
        # The sign of a rounding error would decide between all of the budget and none.
        confidences = torch.where((confidences - 0.5).abs() < _UNDECIDED, 0.5, confidences)
        margins = torch.logit(confidences)
        try:
            flip = sera_solvers.label_flip(margins, radius, self.cost).flip
        except sera_solvers.SolversError as error:
            raise failed("smoother 'label_flip'", error, "Lower training.learning_rate.") from error
        flip = flip.to(confidence.device, confidence.dtype)
        return 1 - flip, flip

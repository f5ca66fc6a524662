"""The algebra of one training step: log-probs in, one loss per pair out, and their reduction. Nothing else.

Every stage is one line of `pair_losses`; every stage is a component. Nothing here knows models, files or ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sera_core.protocols import Anchored, Objective, Reweighter, Smoother, Transform
from sera_core.records import BatchStats, PairBatch, PairLogps


@dataclass(frozen=True, slots=True)
class Algebra:
    """The components of one loss, in the order they act."""

    objective: Objective
    transforms: tuple[Transform, ...]
    smoother: Smoother
    reweighter: Reweighter


@dataclass(frozen=True, slots=True)
class PairLosses:
    """Per-pair results of b pairs, torch float32 [b] each.

    `base_margins` come from the objective, `margins` after the transforms. `confidences`, `keep` and `flip` carry no
    gradient. `losses` are smoothed and unweighted; `anchors` is None unless the objective has an anchor.
    """

    base_margins: Tensor
    margins: Tensor
    confidences: Tensor
    keep: Tensor
    flip: Tensor
    losses: Tensor
    anchors: Tensor | None


def pair_losses(algebra: Algebra, batch: PairBatch, split: tuple[Tensor, Tensor] | None = None) -> PairLosses:
    """Margins, confidences and losses [b] of a batch of b pairs, not reduced.

    `split` fixes (keep [b], flip [b]) where they were computed for the whole effective batch beforehand. A flip that
    is zero everywhere leaves the base loss untouched bit for bit: the flipped loss is not evaluated.
    """
    objective = algebra.objective
    base = margins = objective.margins(batch.logps)
    for transform in algebra.transforms:
        margins = transform.apply(margins, batch)
    confidences = objective.confidence(margins.detach()).detach()
    keep, flip = algebra.smoother.flip_weights(confidences, batch) if split is None else split
    losses = keep * objective.losses(margins)
    if bool(torch.any(flip != 0)):
        losses = losses + flip * objective.losses(-margins)
    anchors = objective.anchor(batch.logps) if isinstance(objective, Anchored) else None
    return PairLosses(base, margins, confidences, keep, flip, losses, anchors)


def batch_stats(result: PairLosses, flipped: Tensor, progress: float) -> BatchStats:
    """What a reweighter may see of n pairs: detached margins, confidences and losses, and known flips."""
    return BatchStats(
        margins=result.margins.detach(),
        confidences=result.confidences,
        losses=result.losses.detach(),
        flipped=flipped,
        progress=progress,
    )


def reduce(result: PairLosses, weights: Tensor, total: int) -> Tensor:
    """(sum of weight x loss + sum of anchors) / `total`, a scalar.

    `total` counts the pairs of the whole effective batch, so that the losses of its micro-batches add up to its mean.
    """
    loss = (weights * result.losses).sum()
    if result.anchors is not None:
        loss = loss + result.anchors.sum()
    return loss / total


def concatenate(parts: list[PairLogps]) -> PairLogps:
    """One record of all pairs in `parts`, in order, without gradient."""
    columns: dict[str, Tensor | None] = {}
    for column in fields(PairLogps):
        values = [getattr(part, column.name) for part in parts]
        columns[column.name] = None if values[0] is None else torch.cat([value.detach() for value in values])
    return PairLogps(**columns)  # type: ignore[arg-type]  # the required columns are never None

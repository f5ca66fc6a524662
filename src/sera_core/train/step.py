"""The algebra of one training step: log-probs in, one loss per pair out, and their reduction. Nothing else.

Every stage is one line of `pair_losses`; every stage is a component. Nothing here knows models, files or ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from sera_core.protocols import Anchored, Objective, Reweighter, Smoother, Transform
from sera_core.records import BatchStats, PairBatch, PairLogps
from sera_core.train.smoothing import smooth


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
    gradient. `losses` are smoothed and unweighted; `anchors` is None unless the objective has an anchor. `metrics` are
    what the smoother reports, if it was asked.
    """

    base_margins: Tensor
    margins: Tensor
    confidences: Tensor
    keep: Tensor
    flip: Tensor
    losses: Tensor
    anchors: Tensor | None
    metrics: Mapping[str, float] = field(default_factory=dict)


def pair_losses(
    algebra: Algebra,
    batch: PairBatch,
    split: tuple[Tensor, Tensor] | None = None,
    extrapolated: PairLogps | None = None,
) -> PairLosses:
    """Margins, confidences and losses [b] of a batch of b pairs, not reduced.

    `split` fixes (keep [b], flip [b]) where they were computed for more pairs at once beforehand. Else the smoother
    reads the confidences of the `extrapolated` policy, where it asks for one (`Needs.extrapolation`), or the policy's
    own. A flip that is zero everywhere leaves the base loss untouched bit for bit: the flipped loss is not evaluated.
    """
    objective = algebra.objective
    base = objective.margins(batch.logps)
    margins = transformed(algebra, base, batch)
    confidences = objective.confidence(margins.detach()).detach()
    metrics: Mapping[str, float] = {}
    if split is None:
        judged = confidences if extrapolated is None else detached_confidences(algebra, extrapolated, batch)
        keep, flip, metrics = smooth(algebra.smoother, judged, batch)
    else:
        keep, flip = split
    losses = keep * objective.losses(margins)
    if bool(torch.any(flip != 0)):
        losses = losses + flip * objective.losses(-margins)
    anchors = objective.anchor(batch.logps) if isinstance(objective, Anchored) else None
    return PairLosses(base, margins, confidences, keep, flip, losses, anchors, metrics)


def transformed(algebra: Algebra, margins: Tensor, batch: PairBatch) -> Tensor:
    """Margins [b] after every transform, in order."""
    for transform in algebra.transforms:
        margins = transform.apply(margins, batch)
    return margins


def detached_confidences(algebra: Algebra, logps: PairLogps, batch: PairBatch) -> Tensor:
    """Confidences [b] that the policy behind `logps` would have in the labels, transforms included, no gradient."""
    with torch.no_grad():
        margins = transformed(algebra, algebra.objective.margins(logps), batch)
        return algebra.objective.confidence(margins).detach()


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

"""Quantities that depend on the whole effective batch, computed once and handed to its micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sera_core.protocols import Stateful
from sera_core.records import PairBatch, PairLogps
from sera_core.train.step import Algebra, batch_stats, concatenate, pair_losses


@dataclass(frozen=True, slots=True, eq=False)
class Fixed:
    """Smoothing and weights of one micro-batch of b pairs, float32 [b] each, decided for the effective batch."""

    keep: Tensor
    flip: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Detached log-probs and known flips, float32 [b], of one micro-batch; `counted` is false for a filler."""

    logps: PairLogps
    flipped: Tensor
    counted: bool = True


def needs_whole_batch(algebra: Algebra) -> bool:
    """Whether a component must see the effective batch at once.

    A smoother with a state does, even without saying so: called once per micro-batch it would depend on how the
    batch was split.
    """
    smoother = algebra.smoother
    return algebra.reweighter.needs.whole_batch or smoother.needs.whole_batch or isinstance(smoother, Stateful)


def fix(
    algebra: Algebra, ranks: Sequence[Sequence[Part]], rank: int, progress: float, iteration: int
) -> list[Fixed | None]:
    """Smoothing and weights for the micro-batches of `rank`, from those of all ranks, `ranks[rank][slot]`.

    Pairs are put in the order in which a single rank would see them. A filler gets None.
    """
    order = [(r, slot) for slot in range(len(ranks[0])) for r in range(len(ranks)) if ranks[r][slot].counted]
    parts = [ranks[r][slot] for r, slot in order]
    with torch.no_grad():
        result = pair_losses(algebra, PairBatch(concatenate([part.logps for part in parts]), progress, iteration))
        flipped = torch.cat([part.flipped for part in parts])
        weights = algebra.reweighter.weights(batch_stats(result, flipped, progress)).detach()
    fixed: list[Fixed | None] = [None] * len(ranks[rank])
    sizes = [len(part.flipped) for part in parts]
    columns = [torch.split(column, sizes) for column in (result.keep, result.flip, weights)]
    for (owner, slot), keep, flip, weight in zip(order, *columns, strict=True):
        if owner == rank:
            fixed[slot] = Fixed(keep, flip, weight)
    return fixed

"""Quantities that depend on many pairs at once, computed for all of them and handed to the micro-batches."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sera_core.protocols import Stateful
from sera_core.records import BatchStats, PairBatch, PairLogps
from sera_core.train.checks import check_finite
from sera_core.train.step import Algebra, PairLosses, batch_stats, concatenate, pair_losses
from sera_core.train.weighing import Weighed, weigh, weighs_dataset, weighs_whole_batch


@dataclass(frozen=True, slots=True)
class Moment:
    """Where training stands: the optimiser `step` under way, from 1, the share of steps done, the iteration."""

    step: int
    progress: float
    iteration: int


@dataclass(frozen=True, slots=True, eq=False)
class Fixed:
    """Smoothing and weights of one micro-batch of b pairs, float32 [b] each, decided for the effective batch.

    `weights` is None where the whole training set is weighed instead.
    """

    keep: Tensor
    flip: Tensor
    weights: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Ids, detached log-probs and known flips, float32 [b], of b pairs; `counted` is false for a filler."""

    ids: tuple[str, ...]
    logps: PairLogps
    flipped: Tensor
    counted: bool = True

    def to(self, device: torch.device) -> Part:
        """The same pairs with their tensors on `device`."""
        columns = (getattr(self.logps, name) for name in PairLogps.__slots__)
        moved = PairLogps(*(None if column is None else column.to(device) for column in columns))  # type: ignore[arg-type]
        return Part(self.ids, moved, self.flipped.to(device), self.counted)


def needs_whole_batch(algebra: Algebra) -> bool:
    """Whether a component must see the effective batch at once.

    A smoother with a state does, even without saying so: called once per micro-batch it would depend on how the
    batch was split.
    """
    smoother = algebra.smoother
    return weighs_whole_batch(algebra.reweighter) or smoother.needs.whole_batch or isinstance(smoother, Stateful)


def gather(parts: list[Part], world: int, device: torch.device) -> list[list[Part]]:
    """The parts of all `world` ranks by rank, on this rank's `device`."""
    if world == 1:
        return [parts]
    ranks: list[Any] = [None] * world
    dist.all_gather_object(ranks, [part.to(torch.device("cpu")) for part in parts])
    return [[part.to(device) for part in rank] for rank in ranks]


def fix(
    algebra: Algebra, ranks: Sequence[Sequence[Part]], rank: int, moment: Moment
) -> tuple[list[Fixed | None], Mapping[str, float]]:
    """Smoothing and weights for the micro-batches of `rank`, from those of all ranks, `ranks[rank][slot]`.

    Pairs are put in the order in which a single rank would see them. A filler gets None. The second result is what the
    reweighter reports.

    Raises:
        ModelError: a loss that is not finite, or an answer of the reweighter that cannot be used.
    """
    order = [(r, slot) for slot in range(len(ranks[0])) for r in range(len(ranks)) if ranks[r][slot].counted]
    parts = [ranks[r][slot] for r, slot in order]
    # Transforms and objective see every pair once more in the pass that trains.
    result, stats = _assess(algebra, parts, moment, (algebra.objective, *algebra.transforms))
    weighed = None if weighs_dataset(algebra.reweighter) else weigh(algebra.reweighter, stats)
    sizes = [len(part.flipped) for part in parts]
    keeps, flips = torch.split(result.keep, sizes), torch.split(result.flip, sizes)
    weights = [None] * len(sizes) if weighed is None else torch.split(weighed.weights, sizes)
    fixed: list[Fixed | None] = [None] * len(ranks[rank])
    for (owner, slot), keep, flip, weight in zip(order, keeps, flips, weights, strict=True):
        if owner == rank:
            fixed[slot] = Fixed(keep, flip, weight)
    return fixed, {} if weighed is None else weighed.metrics


def weigh_dataset(algebra: Algebra, parts: Sequence[Part], moment: Moment) -> Weighed:
    """Weights [n] of the n pairs of `parts`, all pairs of the training set in its order.

    Losses are smoothed as in training, without a trace in a smoother that keeps a state.

    Raises:
        ModelError: see `fix`.
    """
    everything = (algebra.objective, *algebra.transforms, algebra.smoother)
    _, stats = _assess(algebra, parts, moment, everything)
    return weigh(algebra.reweighter, stats)


def _assess(
    algebra: Algebra, parts: Sequence[Part], moment: Moment, unmoved: Sequence[object]
) -> tuple[PairLosses, BatchStats]:
    """Losses and statistics of all `parts` together, without gradient; `unmoved` components keep their state."""
    batch = PairBatch(concatenate([part.logps for part in parts]), moment.progress, moment.iteration)
    with torch.no_grad(), _same_state(unmoved):
        result = pair_losses(algebra, batch)
    check_finite(result.losses, moment.step, [name for part in parts for name in part.ids])
    return result, batch_stats(result, torch.cat([part.flipped for part in parts]), moment.progress)


@contextmanager
def _same_state(components: Sequence[object]) -> Iterator[None]:
    stateful = [component for component in components if isinstance(component, Stateful)]
    states = [copy.deepcopy(component.state_dict()) for component in stateful]
    yield
    for component, state in zip(stateful, states, strict=True):
        component.load_state_dict(state)

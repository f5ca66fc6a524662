"""Quantities that depend on many pairs at once, computed for all of them and handed to the micro-batches."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sera_core.protocols import Stateful
from sera_core.records import BatchStats, PairBatch, PairLogps
from sera_core.train.checks import check_finite
from sera_core.train.measuring import Extras, moved, taken
from sera_core.train.smoothing import splits_whole_batch
from sera_core.train.step import Algebra, PairLosses, batch_stats, concatenate, pair_losses
from sera_core.train.weighing import Weighed, weigh, weighs_dataset, weighs_whole_batch

_NO_EXTRAS = Extras()

Value = TypeVar("Value")


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
    """Ids, detached log-probs and known flips, float32 [b], of b pairs; `counted` is false for a filler.

    `split` is (keep [b], flip [b]) where the smoother has split the whole training set already. `places` int64 [b] are
    their numbers within the optimiser step.
    """

    ids: tuple[str, ...]
    logps: PairLogps
    flipped: Tensor
    counted: bool = True
    extras: Extras = _NO_EXTRAS
    split: tuple[Tensor, Tensor] | None = None
    places: Tensor | None = None

    def to(self, device: torch.device) -> Part:
        """The same pairs with their tensors on `device`."""
        split = None if self.split is None else (self.split[0].to(device), self.split[1].to(device))
        logps, extras = moved(self.logps, device), self.extras.to(device)
        places = None if self.places is None else self.places.to(device)
        return Part(self.ids, logps, self.flipped.to(device), self.counted, extras, split, places)

    def take(self, order: Tensor) -> Part:
        """The pairs numbered by int64 `order`, in that order."""
        split = None if self.split is None else (self.split[0][order], self.split[1][order])
        ids = tuple(self.ids[i] for i in order.tolist())
        places = None if self.places is None else self.places[order]
        logps, extras = taken(self.logps, order), self.extras.take(order)
        return Part(ids, logps, self.flipped[order], self.counted, extras, split, places)


def needs_whole_batch(algebra: Algebra) -> bool:
    """Whether a component must see the effective batch at once."""
    return weighs_whole_batch(algebra.reweighter) or splits_whole_batch(algebra.smoother)


def gather(parts: list[Part], world: int, device: torch.device) -> list[list[Part]]:
    """The parts of all `world` ranks by rank, on this rank's `device`."""
    if world == 1:
        return [parts]
    ranks = of_ranks([part.to(torch.device("cpu")) for part in parts], world)
    return [[part.to(device) for part in rank] for rank in ranks]


def of_ranks(value: Value, world: int) -> list[Value]:
    """The `value` of each of `world` ranks, by rank, on all of them; tensors in it are on the CPU."""
    if world == 1:
        return [value]
    ranks: list[Any] = [None] * world
    dist.all_gather_object(ranks, value)
    return ranks


def pair_batch(algebra: Algebra, logps: PairLogps, extras: Extras, moment: Moment) -> PairBatch:
    """What transforms and smoother may see of a batch."""
    with torch.no_grad():
        prefixed = {name: algebra.objective.margins(under) for name, under in extras.prefixed.items()}
    return PairBatch(logps, moment.progress, moment.iteration, prefixed)


def fix(
    algebra: Algebra, ranks: Sequence[Sequence[Part]], rank: int, moment: Moment
) -> tuple[list[Fixed | None], Mapping[str, float]]:
    """Smoothing and weights for the micro-batches of `rank`, from those of all ranks, `ranks[rank][slot]`.

    They see the pairs in the order of the epoch, however these were shared out. A filler gets None. The second result
    is what the smoother and the reweighter report.

    Raises:
        ModelError: a loss that is not finite, or an answer of either that cannot be used.
    """
    order = [(r, slot) for slot in range(len(ranks[0])) for r in range(len(ranks)) if ranks[r][slot].counted]
    parts = [ranks[r][slot] for r, slot in order]
    together = _joined(parts)
    places = torch.arange(len(together.ids)) if together.places is None else together.places
    by_place = places.argsort(stable=True)
    back = by_place.argsort()
    # Transforms and objective see every pair once more in the pass that trains.
    result, stats = _assess(algebra, together.take(by_place), moment, (algebra.objective, *algebra.transforms))
    weighed = None if weighs_dataset(algebra.reweighter) else weigh(algebra.reweighter, stats)
    sizes = [len(part.flipped) for part in parts]
    keeps, flips = (torch.split(values[back], sizes) for values in (result.keep, result.flip))
    weights = [None] * len(sizes) if weighed is None else torch.split(weighed.weights[back], sizes)
    fixed: list[Fixed | None] = [None] * len(ranks[rank])
    for (owner, slot), keep, flip, weight in zip(order, keeps, flips, weights, strict=True):
        if owner == rank:
            fixed[slot] = Fixed(keep, flip, weight)
    return fixed, {**result.metrics, **({} if weighed is None else weighed.metrics)}


def weigh_dataset(algebra: Algebra, parts: Sequence[Part], moment: Moment) -> Weighed:
    """Weights [n] of the n pairs of `parts`, all pairs of the training set in its order.

    Losses are smoothed by one call to the smoother with all n pairs in that order, without a trace in one that keeps a
    state: a smoother whose threshold comes from a window of the last w pairs takes it from the last w of the training
    set, whatever was trained on last.

    Raises:
        ModelError: see `fix`.
    """
    everything = (algebra.objective, *algebra.transforms, algebra.smoother)
    _, stats = _assess(algebra, _joined(parts), moment, everything)
    return weigh(algebra.reweighter, stats)


def split_dataset(
    algebra: Algebra, parts: Sequence[Part], moment: Moment
) -> tuple[tuple[Tensor, Tensor], Mapping[str, float]]:
    """(keep [n], flip [n]) of all pairs of the training set in its order, and what the smoother reports.

    Raises:
        ModelError: see `fix`.
    """
    undecided = replace(_joined(parts), split=None)
    result, _ = _assess(algebra, undecided, moment, (algebra.objective, *algebra.transforms))
    return (result.keep, result.flip), result.metrics


def _assess(algebra: Algebra, part: Part, moment: Moment, unmoved: Sequence[object]) -> tuple[PairLosses, BatchStats]:
    """Losses and statistics of all pairs of `part`, without gradient; `unmoved` components keep their state."""
    batch = pair_batch(algebra, part.logps, part.extras, moment)
    with torch.no_grad(), _same_state(unmoved):
        result = pair_losses(algebra, batch, part.split, part.extras.extrapolated)
    check_finite(result.losses, moment.step, part.ids)
    return result, batch_stats(result, part.flipped, moment.progress)


def _joined(parts: Sequence[Part]) -> Part:
    """All pairs in `parts`, in order."""
    prefixed = {
        prefix: concatenate([part.extras.prefixed[prefix] for part in parts]) for prefix in parts[0].extras.prefixed
    }
    far = [part.extras.extrapolated for part in parts if part.extras.extrapolated is not None]
    splits = [part.split for part in parts if part.split is not None]
    split = (torch.cat([keep for keep, _ in splits]), torch.cat([flip for _, flip in splits])) if splits else None
    places = [part.places for part in parts if part.places is not None]
    return Part(
        ids=tuple(name for part in parts for name in part.ids),
        logps=concatenate([part.logps for part in parts]),
        flipped=torch.cat([part.flipped for part in parts]),
        extras=Extras(prefixed, concatenate(far) if far else None),
        split=split,
        places=torch.cat(places) if places else None,
    )


@contextmanager
def _same_state(components: Sequence[object]) -> Iterator[None]:
    stateful = [component for component in components if isinstance(component, Stateful)]
    states = [copy.deepcopy(component.state_dict()) for component in stateful]
    yield
    for component, state in zip(stateful, states, strict=True):
        component.load_state_dict(state)

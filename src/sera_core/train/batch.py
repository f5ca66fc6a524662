"""From pairs to micro-batches: dataset, order, collation. Padding is left to the log-prob engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from sera_core.errors import DataError
from sera_core.models.logps import Group
from sera_core.records import Pair, PairLogps, Pairs

Reference: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]


class Draw(NamedTuple):
    """A pair to train on, by index. A filler (`counted` false) only keeps a rank busy and never changes a loss."""

    pair: int
    counted: bool


@dataclass(frozen=True, slots=True, eq=False)
class TrainingPair:
    """A pair with its stored reference log-probs: natural-log sums, (chosen, rejected), None without a reference.

    `index` is its place in the training set.
    """

    index: int
    pair: Pair
    reference: tuple[float, float] | None
    counted: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class PairInputs:
    """A micro-batch of b pairs. `groups[i]` holds prompt, chosen and rejected ids of pair i.

    `indices` int64 [b] are their places in the training set. References are float32 [b] or None. `flipped` float32 [b]
    is nan where unknown. `counted` is false when the micro-batch is a filler. `slot` is its number within the effective
    batch.
    """

    indices: Tensor
    ids: tuple[str, ...]
    groups: tuple[Group, ...]
    chosen_reference: Tensor | None
    rejected_reference: Tensor | None
    flipped: Tensor
    counted: bool
    slot: int = 0

    @property
    def pairs(self) -> int:
        """How many pairs count towards the loss."""
        return len(self.ids) if self.counted else 0

    def to(self, device: torch.device) -> PairInputs:
        """The same micro-batch with its tensors on `device`. Ids stay where they are."""
        chosen, rejected = self.chosen_reference, self.rejected_reference
        return replace(
            self,
            indices=self.indices.to(device),
            chosen_reference=None if chosen is None else chosen.to(device),
            rejected_reference=None if rejected is None else rejected.to(device),
            flipped=self.flipped.to(device),
        )

    def logps(self, sums: Tensor, lengths: Tensor) -> PairLogps:
        """Policy sums [2b] and lengths [2b], chosen and rejected alternating, joined with the references."""
        return PairLogps(
            sums[0::2], sums[1::2], lengths[0::2], lengths[1::2], self.chosen_reference, self.rejected_reference
        )


class PairDataset(Dataset[TrainingPair]):
    """Pairs aligned with `reference`, (chosen float32 [n], rejected float32 [n]).

    Raises:
        DataError: no pairs, a repeated id, or a reference that is misaligned or not finite.
    """

    def __init__(self, pairs: Pairs, reference: Reference | None) -> None:
        self._pairs = pairs.pairs
        self._reference = reference
        if not self._pairs:
            dropped = ", ".join(f"{count} {reason}" for reason, count in pairs.dropped.items()) or "none"
            raise DataError(f"There is no pair to train on (dropped before: {dropped}). Loosen selection or add data.")
        _check_ids(self._pairs)
        if reference is not None:
            _check_reference(self._pairs, reference)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, draw: Draw) -> TrainingPair:
        """The drawn pair with its reference."""
        reference = None
        if self._reference is not None:
            reference = float(self._reference[0][draw.pair]), float(self._reference[1][draw.pair])
        return TrainingPair(draw.pair, self._pairs[draw.pair], reference, draw.counted)


class EpochBatches(Sampler[list[Draw]]):
    """Micro-batches of one rank in an order that depends on (seed, epoch) alone.

    Step k of all `world` ranks together holds the pairs k * size * world onwards of one permutation, so the effective
    batch is the same whether it is split over ranks, micro-batches or not at all. No pair is left out or repeated; a
    rank without a pair in the last step gets a filler. Set `epoch` before iterating.
    """

    def __init__(self, pairs: int, size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.epoch = 0
        self._pairs, self._size, self._seed, self._rank, self._world = pairs, size, seed, rank, world

    def __len__(self) -> int:
        return -(-self._pairs // (self._size * self._world))

    def __iter__(self) -> Iterator[list[Draw]]:
        order = np.random.default_rng((self._seed, self.epoch)).permutation(self._pairs).tolist()
        span = self._size * self._world
        for start in range(0, self._pairs, span):
            step = order[start : start + span]
            mine = step[self._rank * self._size : (self._rank + 1) * self._size]
            yield [Draw(index, True) for index in mine] or [Draw(step[0], False)]


def collate(items: Sequence[TrainingPair]) -> PairInputs:
    """One micro-batch from at least one item, in order."""
    pairs = [item.pair for item in items]
    references = [item.reference for item in items if item.reference is not None]
    columns = torch.tensor(references, dtype=torch.float32).T if references else None
    flipped = [float("nan") if pair.flipped is None else float(pair.flipped) for pair in pairs]
    return PairInputs(
        indices=torch.tensor([item.index for item in items]),
        ids=tuple(pair.id for pair in pairs),
        groups=tuple(Group(pair.prompt.ids, (pair.chosen.ids, pair.rejected.ids)) for pair in pairs),
        chosen_reference=None if columns is None else columns[0].contiguous(),
        rejected_reference=None if columns is None else columns[1].contiguous(),
        flipped=torch.tensor(flipped, dtype=torch.float32),
        counted=items[0].counted,
    )


def _check_ids(pairs: Sequence[Pair]) -> None:
    seen: set[str] = set()
    for pair in pairs:
        if pair.id in seen:
            raise DataError(f"Two training pairs have the id {pair.id!r}; ids must be unique within a run.")
        seen.add(pair.id)


def _check_reference(pairs: Sequence[Pair], reference: Reference) -> None:
    for side, values in zip(("chosen", "rejected"), reference, strict=True):
        if values.shape != (len(pairs),):
            raise DataError(
                f"The reference log-probs of the {side} responses have shape {values.shape}, expected "
                f"({len(pairs)},): one per training pair, in the same order."
            )
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise DataError(
                f"The reference log-prob of the {side} response of pair {pairs[int(bad[0])].id!r} is "
                f"{values[bad[0]]}. Recompute it with the reference model in float32."
            )

"""From pairs to micro-batches: dataset and collation. Packing is left to the log-prob engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from sera_core.errors import DataError
from sera_core.models.logps import Group
from sera_core.records import Ids, Pair, PairLogps, Pairs
from sera_core.train.order import Draw

Reference: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class Prefixed:
    """The n training pairs under one prompt prefix: prompt ids int32 [p] each, and `reference` log-probs as theirs."""

    prompts: tuple[Ids, ...]
    reference: Reference | None


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """One pair's prompt ids and stored reference log-probs: natural-log sums, (chosen, rejected), or None."""

    prompt: Ids
    reference: tuple[float, float] | None


@dataclass(frozen=True, slots=True, eq=False)
class TrainingPair:
    """A pair as it is asked plainly and under each prefix.

    `index` is its number in the training set, `place` that within its optimiser step.
    """

    index: int
    pair: Pair
    plain: Asked
    prefixed: Mapping[str, Asked]
    counted: bool = True
    place: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """b pairs asked in one way: `groups[i]` holds prompt, chosen and rejected ids of pair i.

    References are float32 [b] or None.
    """

    groups: tuple[Group, ...]
    chosen_reference: Tensor | None
    rejected_reference: Tensor | None

    def to(self, device: torch.device) -> Answers:
        """The same with its tensors on `device`. Ids stay where they are."""
        chosen, rejected = self.chosen_reference, self.rejected_reference
        return replace(
            self,
            chosen_reference=None if chosen is None else chosen.to(device),
            rejected_reference=None if rejected is None else rejected.to(device),
        )

    def logps(self, sums: Tensor) -> PairLogps:
        """Policy sums [2b], chosen and rejected alternating, joined with lengths and references."""
        lengths = torch.tensor([len(ids) for group in self.groups for ids in group.responses], device=sums.device)
        return PairLogps(
            sums[0::2], sums[1::2], lengths[0::2], lengths[1::2], self.chosen_reference, self.rejected_reference
        )


@dataclass(frozen=True, slots=True, eq=False)
class PairInputs:
    """A micro-batch of b pairs, asked plainly and under each prompt prefix.

    `indices` int64 [b] are their numbers in the training set, `places` int64 [b] those within the optimiser step.
    `flipped` float32 [b] is nan where unknown. `counted` is false when the micro-batch is a filler. `slot` is its
    number within the effective batch.
    """

    indices: Tensor
    places: Tensor
    ids: tuple[str, ...]
    plain: Answers
    flipped: Tensor
    counted: bool
    slot: int = 0
    prefixed: Mapping[str, Answers] = field(default_factory=dict)

    @property
    def pairs(self) -> int:
        """How many pairs count towards the loss."""
        return len(self.ids) if self.counted else 0

    def to(self, device: torch.device) -> PairInputs:
        """The same micro-batch with its tensors on `device`."""
        return replace(
            self,
            indices=self.indices.to(device),
            places=self.places.to(device),
            plain=self.plain.to(device),
            flipped=self.flipped.to(device),
            prefixed={prefix: answers.to(device) for prefix, answers in self.prefixed.items()},
        )


class PairDataset(Dataset[TrainingPair]):
    """Pairs aligned with `reference`, (chosen float32 [n], rejected float32 [n]), and with what each prefix brings.

    Raises:
        DataError: no pairs, a repeated id, or a reference that is misaligned or not finite.
    """

    def __init__(
        self, pairs: Pairs, reference: Reference | None, prefixed: Mapping[str, Prefixed] = MappingProxyType({})
    ) -> None:
        self._pairs = pairs.pairs
        if not self._pairs:
            dropped = ", ".join(f"{count} {reason}" for reason, count in pairs.dropped.items()) or "none"
            raise DataError(f"There is no pair to train on (dropped before: {dropped}). Loosen selection or add data.")
        _check_ids(self._pairs)
        self._plain = Prefixed(tuple(pair.prompt.ids for pair in self._pairs), reference)
        self._prefixed = dict(prefixed)
        for each in (self._plain, *self._prefixed.values()):
            if each.reference is not None:
                _check_reference(self._pairs, each.reference)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, draw: Draw) -> TrainingPair:
        """The drawn pair with its references."""
        prefixed = {prefix: _asked(each, draw.pair) for prefix, each in self._prefixed.items()}
        pair, plain = self._pairs[draw.pair], _asked(self._plain, draw.pair)
        return TrainingPair(draw.pair, pair, plain, prefixed, draw.counted, draw.place)

    def costs(self) -> list[int]:
        """Tokens of every pair, prompt and both responses, the prompt once."""
        return [len(pair.prompt.ids) + len(pair.chosen.ids) + len(pair.rejected.ids) for pair in self._pairs]


def collate(items: Sequence[TrainingPair]) -> PairInputs:
    """One micro-batch from at least one item, in order."""
    pairs = [item.pair for item in items]
    flipped = [float("nan") if pair.flipped is None else float(pair.flipped) for pair in pairs]
    return PairInputs(
        indices=torch.tensor([item.index for item in items]),
        places=torch.tensor([item.place for item in items]),
        ids=tuple(pair.id for pair in pairs),
        plain=_answers(pairs, [item.plain for item in items]),
        flipped=torch.tensor(flipped, dtype=torch.float32),
        counted=items[0].counted,
        prefixed={prefix: _answers(pairs, [item.prefixed[prefix] for item in items]) for prefix in items[0].prefixed},
    )


def _asked(given: Prefixed, index: int) -> Asked:
    reference = given.reference
    stored = None if reference is None else (float(reference[0][index]), float(reference[1][index]))
    return Asked(given.prompts[index], stored)


def _answers(pairs: Sequence[Pair], asked: Sequence[Asked]) -> Answers:
    references = [each.reference for each in asked if each.reference is not None]
    columns = torch.tensor(references, dtype=torch.float32).T if references else None
    return Answers(
        groups=tuple(
            Group(each.prompt, (pair.chosen.ids, pair.rejected.ids)) for pair, each in zip(pairs, asked, strict=True)
        ),
        chosen_reference=None if columns is None else columns[0].contiguous(),
        rejected_reference=None if columns is None else columns[1].contiguous(),
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

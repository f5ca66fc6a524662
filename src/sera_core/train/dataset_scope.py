"""Smoothing and weights decided for the whole training set, every so many epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainingArguments

from sera_core.train.batch import PairDataset, collate
from sera_core.train.dataset_values import DatasetValues
from sera_core.train.effective import Moment, Part, gather, split_dataset, weigh_dataset
from sera_core.train.last_seen import LastSeen
from sera_core.train.measuring import Measurer
from sera_core.train.order import Draw
from sera_core.train.smoothing import splits_dataset
from sera_core.train.step import Algebra
from sera_core.train.weighing import weighs_dataset

# Pairs passed on at once while the whole training set is measured; forward passes are cut by the token budget.
_MEASURED_TOGETHER = 512


@dataclass(frozen=True, slots=True, eq=False)
class DatasetScope:
    """What is decided for all pairs of `dataset` at once: `weights` by the reweighter, `split` by the smoother.

    Each is None where its component acts on the effective batch instead. `seen` is what training measured of each pair.
    """

    algebra: Algebra
    dataset: PairDataset
    weights: DatasetValues | None
    split: DatasetValues | None
    seen: LastSeen

    def split_of(self, indices: Tensor) -> tuple[Tensor, Tensor] | None:
        """(keep [b], flip [b]) of the pairs with `indices` int64 [b], None where the training set is not split."""
        if self.split is None:
            return None
        keep, flip = self.split.of(indices)
        return keep, flip

    def measure(
        self, measurer: Measurer, args: TrainingArguments, moment: Moment, *, live_reference: bool
    ) -> dict[str, float]:
        """Decide again where that is due, by the policy as it is now, dropout off; returns what components report.

        Every rank passes a share of the training set through the policy. With `live_reference` the reference is the
        policy itself: the stored one differs from it by rounding, which would pass for a margin.
        """
        done, reported = moment.step - 1, dict[str, float]()
        split_due = self.split is not None and self.split.due(done)
        weights_due = self.weights is not None and self.weights.due(done)
        if split_due or weights_due:
            parts = self._parts(measurer, args, live_reference=live_reference)
            if self.split is not None and split_due:
                split, metrics = split_dataset(self.algebra, parts, moment)
                self.split.put(split, moment.step)
                reported |= metrics
            if self.weights is not None and weights_due:
                weighed = weigh_dataset(self.algebra, self._with_split(parts), moment)
                self.weights.put((weighed.weights,), moment.step)
                reported |= weighed.metrics
        for name, values in (("resmoothed_at", self.split), ("reweighted_at", self.weights)):
            if values is not None:
                reported[name] = float(values.measured_at)
        return reported

    def components(self) -> dict[str, Any]:
        """What must survive a checkpoint, by name."""
        named = {"dataset weights": self.weights, "dataset split": self.split, "pairs last seen": self.seen}
        return {name: values for name, values in named.items() if values is not None}

    @torch.no_grad()
    def _parts(self, measurer: Measurer, args: TrainingArguments, *, live_reference: bool) -> list[Part]:
        share = np.array_split(np.arange(len(self.dataset)), args.world_size)[args.process_index]
        parts = []
        measurer.policy.train(mode=False)
        for start in range(0, len(share), _MEASURED_TOGETHER):
            indices = share[start : start + _MEASURED_TOGETHER].tolist()
            inputs = collate([self.dataset[Draw(index, True)] for index in indices]).to(args.device)
            if live_reference:
                inputs = measurer.with_live_reference(inputs)
            logps = measurer.logps(measurer.policy, inputs.plain)
            extras = measurer.extras(inputs, extrapolate=not live_reference)
            parts.append(Part(inputs.ids, logps, inputs.flipped, extras=extras))
        measurer.policy.train()
        return [part for rank in gather(parts, args.world_size, args.device) for part in rank]

    def _with_split(self, parts: Sequence[Part]) -> list[Part]:
        """Parts with the split of their pairs, which stand in the order of the training set."""
        ends = np.cumsum([len(part.flipped) for part in parts]).tolist()
        return [
            replace(part, split=self.split_of(torch.arange(end - len(part.flipped), end, device=part.flipped.device)))
            for part, end in zip(parts, ends, strict=True)
        ]


def dataset_scope(algebra: Algebra, dataset: PairDataset, effective_batch: int) -> DatasetScope:
    """The scope of one training run with `effective_batch` pairs per optimiser step."""
    pairs = len(dataset)

    def every(epochs: float) -> int:
        return max(1, round(epochs * -(-pairs // effective_batch)))

    weights = split = None
    if weighs_dataset(algebra.reweighter):
        weights = DatasetValues(pairs, every(algebra.reweighter.needs.dataset_every), (1.0,))
    if splits_dataset(algebra.smoother):
        split = DatasetValues(pairs, every(algebra.smoother.needs.dataset_every), (1.0, 0.0))
    return DatasetScope(algebra, dataset, weights, split, LastSeen(pairs))

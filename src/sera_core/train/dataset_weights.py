"""Weights of all training pairs, measured every so many steps and kept in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sera_core.errors import StoreError


class DatasetWeights:
    """One weight for each of `pairs` training pairs, measured before every `every`-th optimiser step, the first too.

    `measured_at` is the optimiser step, from 1, whose weights were measured last. All of it survives a checkpoint.
    """

    def __init__(self, pairs: int, every: int) -> None:
        self.measured_at = 0
        self._every = every
        self._weights = torch.ones(pairs)

    def due(self, done: int) -> bool:
        """Whether to measure after `done` optimiser steps."""
        return done % self._every == 0

    def put(self, weights: Tensor, step: int) -> None:
        """Keep `weights` float32 [pairs], in the order of the training set, measured before optimiser step `step`."""
        self._weights, self.measured_at = weights, step

    def of(self, indices: Tensor) -> Tensor:
        """Weights [b] of the pairs with `indices` int64 [b] in the training set, on the device of `indices`."""
        self._weights = self._weights.to(indices.device)
        return self._weights[indices]

    def state_dict(self) -> dict[str, Any]:
        """The weights and when they were measured. Every float32 is a float exactly."""
        return {"measured_at": self.measured_at, "weights": self._weights.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            StoreError: it holds the weights of another number of pairs.
        """
        if len(state["weights"]) != len(self._weights):
            raise StoreError(
                f"The checkpoint holds weights of {len(state['weights'])} pairs, the training set has "
                f"{len(self._weights)}. It belongs to other data; delete it to train from the start."
            )
        self.put(torch.tensor(state["weights"], dtype=torch.float32), state["measured_at"])

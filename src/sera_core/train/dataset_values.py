"""Weights or smoothing of all training pairs, measured every so many steps and kept in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sera_core.errors import StoreError


class DatasetValues:
    """A few values for each of `pairs` training pairs, measured before every `every`-th optimiser step, the first too.

    `neutral` holds what each of them is until then. `measured_at` is the optimiser step, from 1, whose values were
    measured last. All of it survives a checkpoint.
    """

    def __init__(self, pairs: int, every: int, neutral: tuple[float, ...]) -> None:
        self.measured_at = 0
        self._every = every
        self._values = torch.tensor(neutral)[:, None].repeat(1, pairs)

    def due(self, done: int) -> bool:
        """Whether to measure after `done` optimiser steps."""
        return done % self._every == 0

    def put(self, values: tuple[Tensor, ...], step: int) -> None:
        """Keep `values`, float32 [pairs] each in training set order, measured before optimiser step `step`."""
        self._values, self.measured_at = torch.stack(values), step

    def of(self, indices: Tensor) -> tuple[Tensor, ...]:
        """Each value [b] of the pairs with `indices` int64 [b] in the training set, on the device of `indices`."""
        self._values = self._values.to(indices.device)
        return tuple(self._values[:, indices])

    def state_dict(self) -> dict[str, Any]:
        """The values and when they were measured. Every float32 is a float exactly."""
        return {"measured_at": self.measured_at, "values": self._values.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            StoreError: it holds the values of another number of pairs.
        """
        values = torch.tensor(state["values"], dtype=torch.float32)
        if values.shape != self._values.shape:
            raise StoreError(
                f"The checkpoint holds values of {values.shape[-1]} pairs, the training set has "
                f"{self._values.shape[1]}. It belongs to other data; delete it to train from the start."
            )
        self._values, self.measured_at = values, state["measured_at"]

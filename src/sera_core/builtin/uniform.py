"""Equal weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch

from sera_core.protocols import Needs
from sera_core.records import BatchStats

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Uniform:
    """Weighs every pair 1: the mean loss."""

    @property
    def needs(self) -> Needs:
        """Nothing, not even the whole batch."""
        return Needs()

    @classmethod
    def neutral(cls) -> Self:
        """The setting that changes nothing: the only one."""
        return cls()

    def weights(self, stats: BatchStats) -> Tensor:
        """Ones [n], without gradient."""
        return torch.ones_like(stats.losses.detach())

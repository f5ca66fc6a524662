"""Label smoothing at a rate that is the same for every pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch

from sera_core.options import require_number
from sera_core.protocols import Needs
from sera_core.records import PairBatch

if TYPE_CHECKING:
    from torch import Tensor

BELOW_HALF = 0.5 - 2.0**-53


@dataclass(frozen=True)
class NoSmoothing:
    """Trusts every label: keep 1, flip 0."""

    @property
    def needs(self) -> Needs:
        """Nothing."""
        return Needs()

    @classmethod
    def neutral(cls) -> Self:
        """The setting that changes nothing: the only one."""
        return cls()

    def flip_weights(self, confidence: Tensor, batch: PairBatch) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """(ones, zeros), [b] each, without gradient."""
        return _constant(confidence, 1.0, 0.0)


@dataclass(frozen=True)
class Constant:
    """Takes every label to be wrong with one probability: loss (1 - e) L(h) + e L(-h), cDPO for the dpo objective.

    Options: `epsilon` in [0, 0.5), the rate e of wrong labels; 0 changes nothing.

    Raises:
        ConfigError: `epsilon` outside [0, 0.5).

    Source: Mitchell 2023 (a note on DPO with noisy preferences), the conservative loss.
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        _require_rate("smoother 'constant'", self.epsilon)

    @property
    def needs(self) -> Needs:
        """Nothing."""
        return Needs()

    @classmethod
    def neutral(cls) -> Self:
        """The setting that changes nothing: rate 0."""
        return cls(epsilon=0.0)

    def flip_weights(self, confidence: Tensor, batch: PairBatch) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """(1 - e, e), [b] each, without gradient."""
        return _constant(confidence, 1 - self.epsilon, self.epsilon)  # Mitchell 2023


@dataclass(frozen=True)
class Unbiased:
    """Corrects for wrong labels so that the expected loss is the clean one, rDPO for the dpo objective.

    loss = ((1 - e) L(h) - e L(-h)) / (1 - 2e). It is unbounded below: watch margins when `epsilon` is large.

    Options: `epsilon` in [0, 0.5), the rate e of wrong labels; 0 changes nothing.

    Raises:
        ConfigError: `epsilon` outside [0, 0.5).

    Source: Chowdhury 2024 (provably robust DPO), the unbiased loss.
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        _require_rate("smoother 'unbiased'", self.epsilon)

    @property
    def needs(self) -> Needs:
        """Nothing."""
        return Needs()

    @classmethod
    def neutral(cls) -> Self:
        """The setting that changes nothing: rate 0."""
        return cls(epsilon=0.0)

    def flip_weights(self, confidence: Tensor, batch: PairBatch) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """((1 - e) / (1 - 2e), -e / (1 - 2e)), [b] each, summing to 1, without gradient."""
        scale = 1 - 2 * self.epsilon
        return _constant(confidence, (1 - self.epsilon) / scale, -self.epsilon / scale)  # Chowdhury 2024


def _constant(like: Tensor, keep: float, flip: float) -> tuple[Tensor, Tensor]:
    detached = like.detach()
    return torch.full_like(detached, keep), torch.full_like(detached, flip)


def _require_rate(component: str, epsilon: float) -> None:
    expected = "a rate of wrong labels, 0 <= epsilon < 0.5 (half of them wrong leaves nothing to learn)"
    require_number(component, "epsilon", epsilon, low=0, high=BELOW_HALF, expected=expected)

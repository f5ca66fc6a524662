"""Direct preference optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import logsigmoid

from sera_core.builtin.margins import log_ratios
from sera_core.options import require_positive
from sera_core.protocols import Needs
from sera_core.records import PairLogps

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DPO:
    """Logistic loss of the implicit reward margin: -log sigmoid(beta h).

    Options: `beta` > 0, the strength of the pull towards the reference, in reward per nat.

    Raises:
        ConfigError: `beta` is not a finite number above 0.

    Source: Rafailov 2023, Eq. 7.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        require_positive("objective 'dpo'", "beta", self.beta, typical="0.01 to 0.5")

    @property
    def needs(self) -> Needs:
        """Log-probs under the training reference."""
        return Needs(reference=True)

    def margins(self, logps: PairLogps) -> Tensor:
        """Margins h [b]: log-ratio of chosen minus log-ratio of rejected, summed over tokens, in nats."""
        chosen, rejected = log_ratios(logps)
        return chosen - rejected

    def losses(self, margins: Tensor) -> Tensor:
        """L(h) [b] >= 0; log 2 at h = 0. Source: Rafailov 2023, Eq. 7."""
        return -logsigmoid(self.beta * margins)  # Rafailov 2023, Eq. 7

    def confidence(self, margins: Tensor) -> Tensor:
        """sigmoid(beta h) [b], the Bradley-Terry probability of the given label."""
        return torch.sigmoid(self.beta * margins)

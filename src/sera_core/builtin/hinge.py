"""Sequence likelihood calibration, in its reference form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sera_core.builtin.margins import log_ratios
from sera_core.options import require_positive
from sera_core.protocols import Needs
from sera_core.records import PairLogps

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Hinge:
    """Hinge loss of the implicit reward margin: max(0, 1 - beta h).

    SLiC with a reference policy: pairs whose log-ratio margin exceeds 1 / beta nats no longer contribute. Zhao 2023
    states SLiC-HF without a reference and with a likelihood term; this is the form SeRA compares with.

    Options: `beta` > 0, in reward per nat.

    Raises:
        ConfigError: `beta` is not a finite number above 0.

    Source: Ko 2024 (SeRA), Eq. 8.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        require_positive("objective 'hinge'", "beta", self.beta, typical="0.01 to 0.5")

    @property
    def needs(self) -> Needs:
        """Log-probs under the training reference."""
        return Needs(reference=True)

    def margins(self, logps: PairLogps) -> Tensor:
        """Margins h [b]: log-ratio of chosen minus log-ratio of rejected, summed over tokens, in nats."""
        chosen, rejected = log_ratios(logps)
        return chosen - rejected

    def losses(self, margins: Tensor) -> Tensor:
        """L(h) [b] >= 0; 1 at h = 0, 0 from h = 1 / beta on. Source: Ko 2024 (SeRA), Eq. 8."""
        return torch.relu(1 - self.beta * margins)  # Ko 2024 (SeRA), Eq. 8

    def confidence(self, margins: Tensor) -> Tensor:
        """sigmoid(beta h) [b], in (0, 1)."""
        return torch.sigmoid(self.beta * margins)

"""Simple preference optimisation, without a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import logsigmoid

from sera_core.builtin.margins import mean_logps
from sera_core.options import require_number, require_positive
from sera_core.protocols import Needs
from sera_core.records import PairLogps

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SimPO:
    """Logistic loss of the length-normalised log-prob margin with a target gap: -log sigmoid(beta h - gamma).

    Options: `beta` > 0, in reward per nat per token; `gamma` >= 0, the target reward gap (in rewards, so that the gap
    in log-probs is gamma / beta). With a smoother, the flipped label asks for a gap of its own:
    L(-h) = -log sigmoid(-beta h - gamma).

    Raises:
        ConfigError: `beta` is not a finite number above 0, or `gamma` not a finite number from 0 on.

    Source: Meng 2024, Eq. 6.
    """

    beta: float = 2.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        require_positive("objective 'simpo'", "beta", self.beta, typical="2 to 10")
        require_number(
            "objective 'simpo'",
            "gamma",
            self.gamma,
            low=0,
            expected="a finite number >= 0 (typically 0.1 to 0.8 times beta)",
        )

    @property
    def needs(self) -> Needs:
        """Nothing beside the policy's log-probs."""
        return Needs()

    def margins(self, logps: PairLogps) -> Tensor:
        """Margins h [b]: mean token log-prob of chosen minus that of rejected, in nats per token."""
        chosen, rejected = mean_logps(logps)
        return chosen - rejected

    def losses(self, margins: Tensor) -> Tensor:
        """L(h) [b] >= 0; log 2 at h = gamma / beta. Source: Meng 2024, Eq. 6."""
        return -logsigmoid(self.beta * margins - self.gamma)  # Meng 2024, Eq. 6

    def confidence(self, margins: Tensor) -> Tensor:
        """sigmoid(beta h) [b], in (0, 1); without the target gap, so that no preference means one half."""
        return torch.sigmoid(self.beta * margins)

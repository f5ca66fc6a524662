"""Identity preference optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from sera_core.builtin.margins import log_ratios
from sera_core.options import require_choice, require_positive
from sera_core.protocols import Needs
from sera_core.records import PairLogps

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class IPO:
    """Squared distance of the margin from 1 / (2 beta).

    Options: `beta` > 0, named tau by Azar 2023. `reduction` says what a log-ratio is: the ``sum`` over response
    tokens, or their ``mean``, as some libraries have it. The best `beta` of the two differs by about a response length.

    Raises:
        ConfigError: `beta` is not a finite number above 0, or `reduction` is neither word.

    Source: Azar 2023, Eq. 17.
    """

    beta: float = 0.1
    reduction: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        require_positive("objective 'ipo'", "beta", self.beta, typical="0.1 to 1")
        require_choice("objective 'ipo'", "reduction", self.reduction, ("sum", "mean"))

    @property
    def needs(self) -> Needs:
        """Log-probs under the training reference."""
        return Needs(reference=True)

    def margins(self, logps: PairLogps) -> Tensor:
        """Margins h [b]: log-ratio of chosen minus log-ratio of rejected; nats, or nats per token with ``mean``."""
        chosen, rejected = log_ratios(logps)
        if self.reduction == "mean":
            return chosen / logps.chosen_length - rejected / logps.rejected_length
        return chosen - rejected

    def losses(self, margins: Tensor) -> Tensor:
        """L(h) [b] >= 0; 0 at h = 1 / (2 beta). Source: Azar 2023, Eq. 17."""
        return (margins - 1 / (2 * self.beta)) ** 2  # Azar 2023, Eq. 17

    def confidence(self, margins: Tensor) -> Tensor:
        """sigmoid(beta h) [b], in (0, 1); IPO itself assumes no Bradley-Terry model."""
        return torch.sigmoid(self.beta * margins)

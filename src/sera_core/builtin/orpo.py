"""Odds ratio preference optimisation, without a reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import logsigmoid

from sera_core.builtin.margins import mean_logps
from sera_core.options import require_positive
from sera_core.protocols import Needs
from sera_core.records import PairLogps

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ORPO:
    """Likelihood of the chosen response plus a logistic loss of the log odds ratio: NLL - lam log sigmoid(h).

    The odds of a response are p / (1 - p) with p the geometric mean of its token probabilities. The margin loss
    carries `lam`; the likelihood term is the anchor, unweighted.

    Options: `lam` > 0, the weight of the odds ratio term.

    Raises:
        ConfigError: `lam` is not a finite number above 0.

    Source: Hong 2024, Eq. 6 and 7.
    """

    lam: float = 0.1

    def __post_init__(self) -> None:
        require_positive("objective 'orpo'", "lam", self.lam, typical="0.05 to 1")

    @property
    def needs(self) -> Needs:
        """Nothing beside the policy's log-probs."""
        return Needs()

    def margins(self, logps: PairLogps) -> Tensor:
        """Margins h [b]: log odds of chosen minus log odds of rejected. Source: Hong 2024, Eq. 4 and 5."""
        chosen, rejected = mean_logps(logps)
        return log_odds(chosen) - log_odds(rejected)  # Hong 2024, Eq. 5

    def losses(self, margins: Tensor) -> Tensor:
        """L(h) [b] >= 0; lam log 2 at h = 0. Source: Hong 2024, Eq. 7."""
        return -self.lam * logsigmoid(margins)  # Hong 2024, Eq. 7

    def confidence(self, margins: Tensor) -> Tensor:
        """sigmoid(h) [b], in (0, 1)."""
        return torch.sigmoid(margins)

    def anchor(self, logps: PairLogps) -> Tensor:
        """Negative mean token log-prob of the chosen response [b] >= 0, nats per token. Source: Hong 2024, Eq. 6."""
        return -mean_logps(logps)[0]  # Hong 2024, Eq. 6


def log_odds(logps: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(logps), finite for every finite logps <= 0.

    A log-prob closer to 0 than the dtype's epsilon counts as that epsilon, without gradient. Source: Hong 2024, Eq. 4.
    """
    clamped = logps.clamp(max=-torch.finfo(logps.dtype).eps)
    # Each branch loses all digits where the other is used, and the unused one must not produce nan gradients.
    near = clamped > -math.log(2)
    small = torch.where(near, clamped, -1.0)
    large = torch.where(near, -1.0, clamped)
    log1mexp = torch.where(near, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))
    return clamped - log1mexp  # Hong 2024, Eq. 4

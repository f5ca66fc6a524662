"""Margins that several objectives share, as functions of one batch's log-probs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sera_core.errors import ModelError
from sera_core.records import PairLogps

if TYPE_CHECKING:
    from torch import Tensor


def log_ratios(logps: PairLogps) -> tuple[Tensor, Tensor]:
    """Summed log pi(y|x) - log pi_ref(y|x) of chosen and rejected, [b] each, no beta.

    Raises:
        ModelError: the batch holds no reference log-probs.
    """
    if logps.chosen_reference is None or logps.rejected_reference is None:
        raise ModelError(
            "Batch without reference log-probs given to an objective that needs them: expected chosen_reference and "
            "rejected_reference [b], got None. Measure the pairs under the training reference first."
        )
    return logps.chosen_policy - logps.chosen_reference, logps.rejected_policy - logps.rejected_reference


def mean_logps(logps: PairLogps) -> tuple[Tensor, Tensor]:
    """Mean token log-probs log pi(y|x) / |y| under the policy, of chosen and rejected, [b] each, in nats per token."""
    return logps.chosen_policy / logps.chosen_length, logps.rejected_policy / logps.rejected_length

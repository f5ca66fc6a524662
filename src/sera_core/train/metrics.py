"""What one optimiser step reports: averages over its whole effective batch, as plain floats."""

from __future__ import annotations

import torch
from torch import Tensor

from sera_core.records import PairLogps
from sera_core.train.step import PairLosses

_COLUMNS = (
    "pairs",
    "loss",
    "margin",
    "accuracy",
    "confidence",
    "chosen_logps",
    "chosen_tokens",
    "weight",
    "weight_square",
    "chosen_log_ratio",
    "rejected_log_ratio",
    "chosen_below",
)


def micro_sums(result: PairLosses, logps: PairLogps, weights: Tensor) -> Tensor:
    """Sums over the b pairs of one micro-batch, float64 [13]: `_COLUMNS`, then the largest weight.

    A margin of exactly 0 counts half in the accuracy. Ratios are 0 without a reference.
    """
    margins = result.base_margins.detach()
    losses = (weights * result.losses).detach()
    if result.anchors is not None:
        losses = losses + result.anchors.detach()
    chosen, zero = logps.chosen_policy.detach(), torch.zeros_like(margins)
    chosen_ratio = rejected_ratio = zero
    if logps.chosen_reference is not None and logps.rejected_reference is not None:
        chosen_ratio = chosen - logps.chosen_reference
        rejected_ratio = logps.rejected_policy.detach() - logps.rejected_reference
    columns = [torch.ones_like(margins), losses, margins, 0.5 * (1 + torch.sign(margins)), result.confidences]
    columns += [chosen, logps.chosen_length.to(margins.dtype), weights, weights.square()]
    columns += [chosen_ratio, rejected_ratio, (chosen_ratio < 0).to(margins.dtype)]
    sums = torch.stack(columns).to("cpu", torch.float64).sum(1)
    return torch.cat([sums, weights.max().to("cpu", torch.float64)[None]])


def step_metrics(rows: Tensor, *, reference: bool, weighted: bool) -> dict[str, float]:
    """Averages by name from the `micro_sums` of all micro-batches and ranks, float64 [k, 13].

    `chosen_logps` is the mean sum per response, `chosen_logps_per_token` the mean over tokens, `chosen_below_reference`
    the share of pairs whose chosen response lost probability. With `weighted`, `effective_sample_size` is Kish's
    (sum w)^2 / sum w^2, in [1, pairs].
    """
    sums = dict(zip(_COLUMNS, rows[:, :-1].sum(0).tolist(), strict=True))
    pairs = sums["pairs"]
    metrics = {
        "loss": sums["loss"] / pairs,
        "margin_mean": sums["margin"] / pairs,
        "accuracy": sums["accuracy"] / pairs,
        "confidence_mean": sums["confidence"] / pairs,
        "chosen_logps": sums["chosen_logps"] / pairs,
        "chosen_logps_per_token": sums["chosen_logps"] / sums["chosen_tokens"],
        "pairs": pairs,
    }
    if reference:
        metrics["chosen_log_ratio"] = sums["chosen_log_ratio"] / pairs
        metrics["rejected_log_ratio"] = sums["rejected_log_ratio"] / pairs
        metrics["chosen_below_reference"] = sums["chosen_below"] / pairs
    if weighted:
        square = sums["weight_square"]
        metrics["weight_max"] = float(rows[:, -1].max())
        metrics["effective_sample_size"] = sums["weight"] ** 2 / square if square > 0 else 0.0
    return metrics

"""What one optimiser step reports: averages over its whole effective batch, as plain floats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sera_core.records import PairLogps

if TYPE_CHECKING:
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
    "flip",
    "flip_acts",
    "flipped",
    "clean",
    "flipped_weight",
    "clean_weight",
    "flipped_flip",
    "clean_flip",
    "flipped_up",
    "clean_up",
)
_ELSEWHERE = frozenset({"iteration", "step", "epoch", "learning_rate", "grad_norm", "reweighted_at", "resmoothed_at"})
# Weights that should all be 1 are so up to rounding only.
_UP = 1 + 1e-5


def micro_sums(result: PairLosses, logps: PairLogps, weights: Tensor, flipped: Tensor) -> Tensor:
    """Sums over the b pairs of one micro-batch, float64 [23]: `_COLUMNS`, then the largest weight.

    A margin of exactly 0 counts half in the accuracy. Ratios are 0 without a reference. `flipped` [b] is 1 or 0 where
    known, else nan.
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
    columns += [chosen, logps.chosen_length, weights, weights.square()]
    columns += [chosen_ratio, rejected_ratio, chosen_ratio < 0]
    flip = result.flip.detach()
    known = (flipped == 1, flipped == 0)
    columns += [flip, flip != 0, *known, *(weights * part for part in known), *(flip * part for part in known)]
    columns += [part & (weights > _UP) for part in known]
    sums = torch.stack([column.to(margins.dtype) for column in columns]).to("cpu", torch.float64).sum(1)
    return torch.cat([sums, weights.max().to("cpu", torch.float64)[None]])


def step_metrics(rows: Tensor, *, reference: bool, weighted: bool) -> dict[str, float]:
    """Averages by name from the `micro_sums` of all micro-batches and ranks, float64 [k, 23].

    `chosen_logps` is the mean sum per response, `chosen_logps_per_token` the mean over tokens, `chosen_below_reference`
    the share of pairs whose chosen response lost probability. With `weighted`, `effective_sample_size` is Kish's
    (sum w)^2 / sum w^2, in [1, pairs]. What cannot be said of these pairs is left out.
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
        metrics["weight_mean"] = sums["weight"] / pairs
        metrics["weight_max"] = float(rows[:, -1].max())
        metrics["effective_sample_size"] = sums["weight"] ** 2 / square if square > 0 else 0.0
    return metrics | _flip_metrics(sums, weighted=weighted)


def reserved_names() -> frozenset[str]:
    """All names a step record may hold beside what components report."""
    everything = torch.ones(1, len(_COLUMNS) + 1, dtype=torch.float64)
    return _ELSEWHERE.union(step_metrics(everything, reference=True, weighted=True))


def _flip_metrics(sums: Mapping[str, float], *, weighted: bool) -> dict[str, float]:
    """How weights and smoothing met the pairs whose label is known to be wrong or right.

    A smoother acts where any pair of the effective batch has a flip weight other than 0.
    """
    smoothed = sums["flip_acts"] > 0
    kinds = {name: sums[name] for name in ("flipped", "clean") if sums[name] > 0}
    metrics: dict[str, float] = {}
    if kinds and (weighted or smoothed):
        metrics["flipped_share"] = sums["flipped"] / sum(kinds.values())
    if weighted:
        up = sums["flipped_up"] + sums["clean_up"]
        if up > 0:
            metrics["flipped_among_up_weighted"] = sums["flipped_up"] / up
        metrics |= {f"weight_{kind}": sums[f"{kind}_weight"] / count for kind, count in kinds.items()}
    if smoothed:
        metrics["flip_mean"] = sums["flip"] / sums["pairs"]
        metrics |= {f"flip_{kind}": sums[f"{kind}_flip"] / count for kind, count in kinds.items()}
    return metrics

"""Asking a reweighter for weights, and holding it to what it promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sera_core.errors import ModelError
from sera_core.protocols import Reweighter, Stateful, Weighing
from sera_core.records import BatchStats
from sera_core.train.told import plain_metrics


@dataclass(frozen=True, slots=True, eq=False)
class Weighed:
    """Weights [n] without gradient, dtype and device of the losses, and the reweighter's own metrics by name."""

    weights: Tensor
    metrics: Mapping[str, float]


def weighs_dataset(reweighter: Reweighter) -> bool:
    """Whether the whole training set is weighed at once, every so many epochs."""
    return reweighter.needs.dataset_every > 0


def weighs_whole_batch(reweighter: Reweighter) -> bool:
    """Whether the effective batch is weighed at once.

    A reweighter with a state, or one that says how it weighed, is asked once per optimiser step even where it does not
    say so: called once per micro-batch its answers would depend on how the batch was split.
    """
    if weighs_dataset(reweighter):
        return False
    return reweighter.needs.whole_batch or isinstance(reweighter, Stateful | Weighing)


def weigh(reweighter: Reweighter, stats: BatchStats) -> Weighed:
    """Weights and metrics for the n pairs of `stats`.

    Raises:
        ModelError: weights that are not [n], finite and >= 0, or metrics that `plain_metrics` refuses.
    """
    metrics: Mapping[str, float] = {}
    if isinstance(reweighter, Weighing):
        answer = reweighter.weigh(stats)
        weights, metrics = answer.weights, plain_metrics(reweighter, answer.metrics)
    else:
        weights = reweighter.weights(stats)
    weights = weights.detach().to(stats.losses)
    _check_weights(reweighter, weights, len(stats.losses))
    return Weighed(weights, metrics)


def _check_weights(reweighter: Reweighter, weights: Tensor, count: int) -> None:
    owner = type(reweighter).__name__
    if weights.shape != (count,):
        raise ModelError(
            f"{owner} gave weights of shape {tuple(weights.shape)} for {count} pairs, expected ({count},)."
        )
    bad = ~(torch.isfinite(weights) & (weights >= 0))
    if bool(bad.any()):
        worst = float(weights[bad][0])
        raise ModelError(
            f"{owner} gave a pair the weight {worst} ({int(bad.sum())} of {count} pairs); weights are finite and not "
            "negative. Check its options, and the margins of the steps before: a policy that has run away leaves a "
            "reweighter nothing to weigh. Lower training.learning_rate then."
        )

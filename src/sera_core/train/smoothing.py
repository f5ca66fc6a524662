"""Asking a smoother how to split pairs, and holding it to what it promises."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sera_core.errors import ModelError
from sera_core.protocols import Smoother, Smoothing, Stateful
from sera_core.records import PairBatch
from sera_core.train.told import plain_metrics


def splits_dataset(smoother: Smoother) -> bool:
    """Whether the whole training set is split at once, every so many epochs."""
    return smoother.needs.dataset_every > 0


def splits_whole_batch(smoother: Smoother) -> bool:
    """Whether the effective batch is split at once.

    A smoother with a state, or one that says how it split, is asked once per optimiser step even where it does not say
    so: called once per micro-batch its answers would depend on how the batch was split.
    """
    if splits_dataset(smoother):
        return False
    return smoother.needs.whole_batch or isinstance(smoother, Stateful | Smoothing)


def smooth(smoother: Smoother, confidences: Tensor, batch: PairBatch) -> tuple[Tensor, Tensor, Mapping[str, float]]:
    """(keep [b], flip [b]) without gradient, dtype and device of the confidences, and the smoother's own metrics.

    Raises:
        ModelError: an answer that is not [b] and finite, or metrics that `plain_metrics` refuses.
    """
    metrics: Mapping[str, float] = {}
    if isinstance(smoother, Smoothing):
        answer = smoother.smooth(confidences, batch)
        split, metrics = (answer.keep, answer.flip), plain_metrics(smoother, answer.metrics)
    else:
        split = smoother.flip_weights(confidences, batch)
    keep, flip = (_checked(smoother, part.detach().to(confidences), len(confidences)) for part in split)
    return keep, flip, metrics


def _checked(smoother: Smoother, weights: Tensor, count: int) -> Tensor:
    owner = type(smoother).__name__
    if weights.shape != (count,):
        raise ModelError(f"{owner} split {count} pairs into shape {tuple(weights.shape)}, expected ({count},).")
    if not bool(torch.isfinite(weights).all()):
        raise ModelError(f"{owner} gave a pair a share that is not finite. Check its options and the margins before.")
    return weights

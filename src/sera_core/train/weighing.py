"""Asking a reweighter for weights, and holding it to what it promises."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from sera_core.errors import ModelError
from sera_core.protocols import Reweighter, Stateful, Weighing
from sera_core.records import BatchStats
from sera_core.train.metrics import reserved_names


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


def plain_metrics(component: object, metrics: Mapping[str, float | Tensor]) -> dict[str, float]:
    """The same metrics as floats, in the order given.

    Raises:
        ModelError: a name that is not a text or that the step record uses itself, or a value that is not one finite
            number.
    """
    owner, taken = type(component).__name__, reserved_names()
    for name, value in metrics.items():
        if not isinstance(name, str) or not name:
            raise ModelError(f"{owner} reports a metric named {name!r}. Names are texts that are not empty.")
        if name in taken:
            raise ModelError(f"{owner} reports the metric '{name}', which the step record has itself. Rename it.")
        if not _is_number(value):
            raise ModelError(f"{owner} reports the metric '{name}' as {value!r}. Give a float or a real tensor [].")
    # One transfer for all of them, rather than one wait for the device each.
    tensors = {name: value.detach() for name, value in metrics.items() if isinstance(value, Tensor)}
    moved = dict(zip(tensors, _together(list(tensors.values())), strict=True))
    plain = {name: moved[name] if name in moved else float(value) for name, value in metrics.items()}
    for name, number in plain.items():
        if not math.isfinite(number):
            raise ModelError(
                f"{owner} reports the metric '{name}' as {number}, which is not a finite number. If the losses are "
                "finite, the component should leave out what does not exist for a batch."
            )
    return plain


def _is_number(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.dim() == 0 and not value.is_complex()
    return isinstance(value, Real) and not isinstance(value, bool)


def _together(values: list[Tensor]) -> list[float]:
    if not values:
        return []
    if len({value.device for value in values}) > 1:
        values = [value.cpu() for value in values]
    dtype = max((value.dtype for value in values), key=lambda dtype: (dtype.is_floating_point, dtype.itemsize))
    numbers: list[float] = torch.stack([value.to(dtype) for value in values]).cpu().to(torch.float64).tolist()
    return numbers


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

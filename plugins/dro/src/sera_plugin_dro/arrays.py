"""Between the core's float32 statistics and the solvers' float64."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from sera_core.errors import ModelError
from sera_core.records import Weighted

_GRID = 2.0**16

Metric: TypeAlias = float | Tensor
"""A figure of a step record, a float or a tensor []."""


def double(values: Tensor) -> Tensor:
    """The same numbers in float64 without gradient, on their device, or on the CPU where that has no float64."""
    detached = values.detach()
    if detached.device.type == "mps":
        detached = detached.cpu()
    return detached.to(torch.float64)


def steady(values: Tensor) -> Tensor:
    """`double`, with values [n] that round to the same multiple of 2^-16 replaced by their mean; others are unchanged.

    Values that all lie within 2^-16 of each other, or of the largest where that is above 1, get their mean, wherever
    they round to.

    Where a policy equals its reference all margins are 0 up to rounding errors, which differ with the number of ranks
    and the size of micro-batches. A worst case that moves the smallest first, or measures losses by their spread, would
    let them decide the update. As ties they share.
    """
    values = double(values)
    keys, order = torch.sort(torch.round(values * _GRID))
    # Groups are numbered without looking at the values, which would wait for an accelerator.
    number = torch.zeros_like(order).scatter(0, order, torch.diff(keys, prepend=keys[:1]).ne(0).cumsum(0))
    total = torch.zeros_like(values).index_add(0, number, values)
    count = torch.zeros_like(values).index_add(0, number, torch.ones_like(values))
    alike = values.max() - values.min() <= values.abs().max().clamp_min(1.0) / _GRID
    return torch.where(alike, values.mean(), total[number] / count[number])


def normalised(weights: Tensor) -> Tensor:
    """Weights [n] rescaled to mean 1; weights that are all zero stay zero."""
    total = weights.sum()
    return torch.where(total > 0, weights * (weights.numel() / total), weights)


def weighted(weights: Tensor, like: Tensor, metrics: dict[str, Metric]) -> Weighted:
    """Weights [n] in the dtype and on the device of `like`, with what is reported about them."""
    return Weighted(weights.to(like.device, like.dtype), metrics)


def failed(component: str, error: Exception, remedy: str) -> ModelError:
    """What to raise when a solver refuses the numbers of a batch or does not solve it."""
    return ModelError(f"{component}: {error} {remedy}")

"""What components tell of themselves for the step record, as plain finite floats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

import torch
from torch import Tensor

from sera_core.errors import ModelError
from sera_core.train.metrics import reserved_names


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

"""The precision a policy is trained in: float32 master weights under a half-precision policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from sera_core.errors import ConfigError

_HALF: Mapping[torch.dtype, str] = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def accelerated() -> bool:
    """Whether training has a device other than the CPU."""
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def check_precision(dtype: str, training: Mapping[str, Any]) -> None:
    """Refuse float16 on a CPU: its gradients need loss scaling, which exists on accelerators only.

    `dtype` is the policy's (``float32``, ``bfloat16``, ``float16``); `training` are checked TrainingArguments fields.

    Raises:
        ConfigError: training would need float16 there.
    """
    asked = bool(training.get("fp16", False))
    implied = dtype == "float16" and not _explicit(training)
    if (asked or implied) and not accelerated():
        what = "training.fp16 is true" if asked else "policy.dtype is float16"
        raise ConfigError(
            f"{what}, but there is no GPU, and float16 cannot be trained on a CPU: its gradients need loss scaling. "
            "Choose bfloat16 or float32."
        )


def set_precision(arguments: TrainingArguments, dtype: torch.dtype, training: Mapping[str, Any], adapter: bool) -> None:
    """Let `arguments` run forward passes in the policy's half precision, unless `training` has ``bf16`` or ``fp16``.

    Master weights need that, and float16 gradients need its loss scaling. A bfloat16 model under an `adapter` runs as
    it is: its weights are frozen, and the adapter computes in float32.

    Raises:
        ConfigError: see `check_precision`.
    """
    check_precision(str(dtype).removeprefix("torch."), training)
    half = autocast_dtype(dtype, training, adapter)
    if half is None or _explicit(training):
        return
    arguments.mixed_precision = _HALF[half]
    setattr(arguments, _HALF[half], True)


def autocast_dtype(dtype: torch.dtype, training: Mapping[str, Any], adapter: bool) -> torch.dtype | None:
    """The dtype in which training a policy of `dtype` runs its forward passes, None where it is the weights' own."""
    if _explicit(training):
        return next((half for half, name in _HALF.items() if training.get(name)), None)
    return dtype if dtype in _HALF and not (adapter and dtype is torch.bfloat16) else None


def _explicit(training: Mapping[str, Any]) -> bool:
    return any(training.get(name) is not None for name in _HALF.values())


def cast_to_master(model: nn.Module) -> dict[str, torch.dtype]:
    """Cast the trainable half-precision parameters of `model` to float32; their dtypes by name, for `cast_back`.

    In bfloat16 itself an update below half a unit in the last place, at least 2^-9 of the weight, is lost.
    Source: Micikevicius et al. 2018, Section 3.1.
    """
    dtypes: dict[str, torch.dtype] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in _HALF:
            dtypes[name] = parameter.dtype
            parameter.data = parameter.data.float()
    return dtypes


def cast_back(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Give the parameters named in `dtypes` those dtypes, rounding to nearest."""
    parameters = dict(model.named_parameters())
    for name, dtype in dtypes.items():
        parameters[name].data = parameters[name].data.to(dtype)

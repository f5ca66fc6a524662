"""Low-rank adapters through peft, imported only when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from sera_core.errors import ModelError, suggest


@dataclass(frozen=True, slots=True)
class LoraOptions:
    """A LoRA adapter: update alpha / r * B A on every target, B starting at 0. Source: Hu et al. 2021, Eq. 3.

    `r` >= 1, `alpha` > 0, `dropout` in [0, 1). `target_modules` are last parts of module names; None means every
    linear layer except the output embedding.
    """

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None


def wrap_lora(model: PreTrainedModel, options: LoraOptions) -> PreTrainedModel:
    """`model` with a fresh adapter: its own weights frozen, outputs unchanged until the adapter is trained.

    Raises:
        ModelError: peft is missing, an option is out of range, or a target names no linear layer.
    """
    _check(model, options)
    try:
        import peft
    except ImportError as error:
        raise ModelError("LoRA needs the package peft. Install it with: pip install 'sera-core[peft]'") from error
    targets = "all-linear" if options.target_modules is None else list(options.target_modules)
    config = peft.LoraConfig(
        r=options.r,
        lora_alpha=cast("int", options.alpha),
        lora_dropout=options.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    return cast("PreTrainedModel", peft.get_peft_model(model, config))


def merge(model: PreTrainedModel) -> PreTrainedModel:
    """The plain model: adapter weights added to the base. A model without an adapter is returned as it is."""
    if not _has_adapter(model):
        return model
    return cast("PreTrainedModel", cast("Any", model).merge_and_unload())


def adapter_off(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, the model acts as its base; nothing changes for a model without an adapter."""
    return _disabled(model) if _has_adapter(model) else nullcontext()


@contextmanager
def _disabled(model: nn.Module) -> Iterator[None]:
    with cast("Any", model).disable_adapter():
        yield


def _has_adapter(model: nn.Module) -> bool:
    return hasattr(model, "merge_and_unload")


def _check(model: PreTrainedModel, options: LoraOptions) -> None:
    if options.r < 1 or options.alpha <= 0 or not 0 <= options.dropout < 1:
        raise ModelError(
            f"LoRA needs r >= 1, alpha > 0 and dropout in [0, 1); got r={options.r}, alpha={options.alpha}, "
            f"dropout={options.dropout}."
        )
    linear = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if _is_linear(module)}
    for target in options.target_modules or ():
        if target not in linear:
            raise ModelError(
                f"{type(model).__name__} has no linear layer called {target!r} for LoRA to adapt. "
                f"{suggest(target, linear)}"
            )


def _is_linear(module: nn.Module) -> bool:
    # GPT-2 keeps its projections in a class of its own.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"

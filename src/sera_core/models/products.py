"""Products with weight matrices by oneDNN, in float32 on a CPU: torch takes MKL's, which are slower on many processors.

torch uses oneDNN for other dtypes by itself, and for this one in compiled models, by the operator that is called here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from sera_core.models.batches import unwrap

# Smaller weights are not worth the detour.
_LARGE = 2**16


def fast_products(model: nn.Module) -> AbstractContextManager[Any]:
    """A context in which the large products of `model` are oneDNN's, or nothing where there are few of these.

    Values and gradients are those of torch's own product up to the order of summation. Activation checkpointing
    computes layers again outside of it and finds the same tensors only if nothing was changed, so nothing is.
    """
    if not _there() or unwrap(model).is_gradient_checkpointing:
        return nullcontext()
    sizes = [weight.numel() for weight in model.parameters() if weight.ndim == 2 and _suits(weight)]
    return _Products() if 2 * sum(size for size in sizes if size >= _LARGE) > sum(sizes) else nullcontext()


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``rows @ weight.T + bias`` of rows [..., H] and weight [V, H] like torch's `linear`, by oneDNN where it suits."""
    if not (
        _there() and _suits(weight) and _suits(rows) and weight.numel() >= _LARGE and rows.ndim > 1 and rows.numel()
    ):
        return linear(rows, weight, bias)
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (rows, weight, bias)):
        found: Tensor = _Linear.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
        return found
    return _by_onednn(rows, weight, bias)


class _Products(TorchFunctionMode):
    """Calls of torch's `linear`, whoever makes them, become calls of `product`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],  # torch's interface
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        return (product if func is linear else func)(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
    """`product` with its gradient; that of the weight is torch's own, which is no slower."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(rows, weight)
        return _by_onednn(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # noqa: ANN401
        rows, weight = ctx.saved_tensors
        by_rows, by_weight, by_bias = ctx.needs_input_grad
        flat = gradient.flatten(0, -2)
        return (
            _by_onednn(gradient, weight.t(), None) if by_rows else None,
            flat.t() @ rows.flatten(0, -2) if by_weight else None,
            flat.sum(0) if by_bias else None,
        )


def _by_onednn(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")  # torch has no public name
    return found


def _suits(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype is torch.float32 and tensor.layout is torch.strided


def _there() -> bool:
    """Whether this torch has oneDNN, nobody has switched it off, and products are not to be in another dtype."""
    usable = bool(torch._C._has_mkldnn and torch.backends.mkldnn.enabled)  # its public `is_available` is untyped
    return usable and hasattr(torch.ops.mkldnn, "_linear_pointwise") and not torch.is_autocast_enabled("cpu")

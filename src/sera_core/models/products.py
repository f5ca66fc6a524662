"""Products with weight matrices by oneDNN, in float32 on a CPU: MKL's, which torch takes there, are often slower.

torch itself uses oneDNN for other dtypes. For this one it has the operator that is called here, but no public name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from sera_core.models.batches import unwrap

# Smaller weights are not worth the detour.
_LARGE = 2**16


def fast_products(model: nn.Module) -> AbstractContextManager[Any]:
    """A context in which large linear layers of `model` multiply by oneDNN, or nothing where most of them are small.

    Values and gradients are those of torch's own product up to the order of summation. Activation checkpointing
    computes layers again outside of it and finds the same tensors only if nothing was changed, so nothing is.
    """
    inner: Any = unwrap(model)
    if not _there() or inner.is_gradient_checkpointing:
        return nullcontext()
    head = inner.get_output_embeddings()  # which is multiplied apart from the layers
    layers = [module for module in inner.modules() if isinstance(module, nn.Linear) and module is not head]
    sizes = [layer.weight.numel() for layer in layers if _suits(layer.weight)]
    return _Products() if 2 * sum(size for size in sizes if size >= _LARGE) > sum(sizes) else nullcontext()


def product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002  # as torch calls it
    """``input @ weight.T + bias`` of [..., H] and [V, H] like torch's `linear`, by oneDNN where it suits."""
    if not _takes(input, weight, bias):
        return linear(input, weight, bias)
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (input, weight, bias)):
        found: Tensor = _Linear.apply(input, weight, bias)  # type: ignore[no-untyped-call]
        return found
    return _by_onednn(input, weight, bias)


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
        by_rows, by_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(rows if by_weight else None, weight if by_rows else None)
        return _by_onednn(rows, weight, bias)

    @staticmethod
    @once_differentiable
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
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")  # no public name
    return found


def _takes(rows: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN is there for this product, and worth the detour."""
    if not (_there() and _suits(rows) and _suits(weight) and weight.ndim == 2 and weight.numel() >= _LARGE):
        return False
    if rows.ndim < 2 or not rows.numel():
        return False
    # The operator takes no strides of a bias.
    return bias is None or (_suits(bias) and bias.shape == weight.shape[:1] and bias.is_contiguous())


def _suits(tensor: Tensor) -> bool:
    # Subclasses, quantised weights say, have products of their own.
    plain = type(tensor) in {Tensor, nn.Parameter} and tensor.layout is torch.strided
    return plain and tensor.device.type == "cpu" and tensor.dtype is torch.float32


def _there() -> bool:
    """Whether torch has oneDNN but multiplies by MKL, nobody has switched it off, and no other dtype is asked for."""
    usable = bool(torch._C.has_mkl and torch._C._has_mkldnn and torch.backends.mkldnn.enabled)
    return usable and hasattr(torch.ops.mkldnn, "_linear_pointwise") and not torch.is_autocast_enabled("cpu")

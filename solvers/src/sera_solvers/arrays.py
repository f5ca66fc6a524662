"""One code path for NumPy arrays and torch tensors, and the checks of their values.

On the host (NumPy, CPU tensors) a bad value raises `InputError`. On an accelerator nothing may wait for the device,
so checks return a spoiler instead: a 0-d tensor that is 0 for good input and nan for bad; add it to every result.
torch is never imported here: a tensor can only come from a torch that is already loaded.
"""

from __future__ import annotations

import math
import sys
from typing import Any, TypeAlias

import numpy as np

from sera_solvers.errors import InputError

Array: TypeAlias = Any
"""A NumPy array or a torch tensor."""
Scalar: TypeAlias = Any
"""A float, or a 0-d torch tensor."""

Namespace: TypeAlias = Any
"""NumPy or torch, as a module."""

SINGLE_BITS = 32
"""Floats of at most this width carry a rounding error worth forgiving at the ends of a support."""


def is_tensor(x: object) -> bool:
    """Whether `x` is a torch tensor; False when torch was never imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def namespace(x: object) -> Namespace:
    """The module whose functions work on `x`: torch for a tensor, NumPy for everything else."""
    return sys.modules["torch"] if is_tensor(x) else np


def on_host(x: object) -> bool:
    """Whether values of `x` may be looked at: True unless it is a tensor on an accelerator or the meta device."""
    return not is_tensor(x) or x.device.type == "cpu"  # type: ignore[attr-defined]  # a tensor has a device


def as_float64(x: object, name: str) -> Array:
    """`x` as a new 1-D float64 array, or a detached float64 tensor on its own device; the caller's is never touched.

    Args:
        x: [N] array, tensor, list or tuple of real numbers, N >= 1.
        name: the argument's name, for the error.

    Raises:
        InputError: not real numbers, not 1-D, or empty. Values are not looked at.
    """
    return _shaped(x, name, ("a 1-D array", 1))


def as_matrix(x: object, name: str) -> Array:
    """As `as_float64`, for a 2-D array with at least one entry."""
    return _shaped(x, name, ("a 2-D array", 2))


def _shaped(x: object, name: str, form: tuple[str, int]) -> Array:
    values = _float_tensor(x, name) if is_tensor(x) else _float_array(x, name)
    what, ndim = form
    if values.ndim != ndim or 0 in values.shape:
        raise InputError(name, f"{what} with at least one value", f"shape {tuple(values.shape)}")
    return values


def _float_array(x: object, name: str) -> Array:
    try:
        raw = np.asarray(x)
    except (TypeError, ValueError) as error:
        raise InputError(name, "an array of real numbers", f"{type(x).__name__} ({error})") from error
    if raw.dtype.kind not in "iuf" and raw.size:
        raise InputError(name, "an array of real numbers", f"dtype {raw.dtype}")
    return np.array(raw, dtype=np.float64)


def _float_tensor(x: Array, name: str) -> Array:
    torch = sys.modules["torch"]
    if x.dtype is torch.bool or x.is_complex():
        raise InputError(name, "a tensor of real numbers", f"dtype {x.dtype}")
    return x.detach().to(torch.float64, copy=True)


def resolution(x: object) -> float:
    """Relative spacing of `x`'s own floats when they are narrower than float64, else 0.

    A bound such as 0.01 is not a float32: values clamped to it in float32 may lie outside by this much.
    """
    dtype = getattr(x, "dtype", None)
    if is_tensor(x) and x.is_floating_point():  # type: ignore[attr-defined]  # a tensor has this method
        info: Any = sys.modules["torch"].finfo(dtype)
    elif isinstance(dtype, np.dtype) and dtype.kind == "f":
        info = np.finfo(dtype)
    else:
        return 0.0
    return float(info.eps) if info.bits <= SINGLE_BITS else 0.0


def within(x: Array, name: str, low: float, high: float, remedy: str = "") -> Scalar:
    """Checks low <= x <= high for every value, NaN failing; give finite bounds to refuse infinities.

    Returns:
        The spoiler: 0.0 on the host, on an accelerator a 0-d float64 tensor, 0 or nan.

    Raises:
        InputError: on the host, a value outside; the message shows the first one and its index.
    """
    if not on_host(x):
        good = ((x >= low) & (x <= high)).all()
        return sys.modules["torch"].where(good, 0.0, math.nan).to(x.dtype)
    if x.min() >= low and x.max() <= high:  # false for NaN
        return 0.0
    values = np.asarray(x)
    flat = int(np.argmin((values >= low) & (values <= high)))
    index = np.unravel_index(flat, values.shape)
    where = ", ".join(str(int(i)) for i in index)
    expected = "finite values" if (low, high) == FINITE else f"values in [{low:g}, {high:g}]"
    raise InputError(name, expected, f"{values[index]!s} at index {where}", remedy)


FINITE = (-sys.float_info.max, sys.float_info.max)
"""The bounds that refuse only NaN and infinities."""


def finite(x: Array, name: str, remedy: str = "") -> Scalar:
    """`within` for any finite value; the same returns and errors."""
    return within(x, name, *FINITE, remedy)


def as_scalar(value: object, name: str, low: float = 0.0, high: float = FINITE[1], *, above: bool = False) -> Scalar:
    """A number in [low, high], or in (low, high] when `above`; infinity is accepted only where `high` is infinite.

    Returns:
        A float for numbers and CPU tensors; a 0-d float64 tensor for accelerator tensors, nan when out of range.

    Raises:
        InputError: not a number, or on the host out of range.
    """
    if not on_host(value):
        return _device_scalar(value, name, low, high, above)
    bound = f"{'>' if above else '>='} {low:g}"
    limit = {math.inf: "", FINITE[1]: ", finite"}.get(high, f", <= {high:g}")
    if isinstance(value, str) or _is_bool(value) or getattr(value, "ndim", 0) != 0:
        raise InputError(name, f"a number {bound}{limit}", _describe(value))
    try:
        number = float(value)  # type: ignore[arg-type]  # the except clause is the check
    except (TypeError, ValueError) as error:
        raise InputError(name, f"a number {bound}{limit}", _describe(value)) from error
    if not (low <= number <= high) or (above and number == low):
        raise InputError(name, f"a number {bound}{limit}", f"{number:g}")
    return number


def _device_scalar(value: Scalar, name: str, low: float, high: float, above: bool) -> Scalar:
    torch = sys.modules["torch"]
    if value.ndim != 0 or _is_bool(value):
        raise InputError(name, "a single number", f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}")
    number = value.detach().to(torch.float64)
    good = (number <= high) & ((number > low) if above else (number >= low))
    return torch.where(good, number, math.nan)


def _is_bool(value: object) -> bool:
    """Whether it is a truth value, of Python, NumPy or torch, which all would pass for 0 or 1."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def _describe(value: object) -> str:
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__} of shape {tuple(shape)}" if shape else repr(value)


def plain(x: Scalar) -> Scalar:
    """A NumPy scalar as a Python float; a 0-d tensor as it is."""
    return x if is_tensor(x) else float(x)


def frozen(x: Array) -> Array:
    """`x` itself, its NumPy array made read-only."""
    if isinstance(x, np.ndarray):
        x.flags.writeable = False
    return x

"""Convex losses on an interval, and their replacement by affine pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeAlias

import numpy as np

from sera_solvers.arrays import Array, frozen, is_tensor, namespace
from sera_solvers.errors import InputError

FEWEST_PIECES = 2
ACCEPTED = "a ConvexLoss, an AffineMax or (slope, intercept) pairs, [K, 2]"


class Loss(Protocol):
    """A convex function on the support; `value` and `derivative` map [N] float64 arrays of either kind to [N]."""

    @property
    def name(self) -> str:
        """What results and messages call it."""
        ...

    @property
    def decreasing(self) -> bool:
        """Whether it never increases on the support, so that mass only moves down."""
        ...

    @property
    def positive_domain(self) -> bool:
        """Whether it is defined for positive arguments only, so that lo must be > 0."""
        ...

    @property
    def value(self) -> Callable[[Array], Array]:
        """l(x), elementwise."""
        ...

    @property
    def derivative(self) -> Callable[[Array], Array]:
        """l'(x), elementwise; at a kink any subgradient."""
        ...


LossLike: TypeAlias = Loss | Sequence[tuple[float, float]] | Array
"""A loss, or the (slope, intercept) pairs of one: a sequence of K pairs or a NumPy array [K, 2]."""


@dataclass(frozen=True)
class ConvexLoss:
    """A convex loss given by its value and derivative. Convexity and `decreasing` are taken on trust.

    Attributes:
        value: [N] -> [N], for NumPy arrays and, if tensors are to be solved, for torch tensors.
        derivative: [N] -> [N], likewise.
        name: what results and messages call it.
        decreasing: never increases on the support.
        positive_domain: needs lo > 0.
    """

    value: Callable[[Array], Array]
    derivative: Callable[[Array], Array]
    name: str
    decreasing: bool = False
    positive_domain: bool = False


def _neg_log(x: Array) -> Array:
    return -namespace(x).log(x)


def _neg_log_derivative(x: Array) -> Array:
    return -1.0 / x


NEG_LOG = ConvexLoss(_neg_log, _neg_log_derivative, "neg-log", decreasing=True, positive_domain=True)
"""l(x) = -log x: the logistic loss of a margin whose sigmoid is x."""


@dataclass(frozen=True)
class AffineMax:
    """l(x) = max_k a_k x + b_k.

    Attributes:
        slopes: K finite a_k, K >= 1.
        intercepts: K finite b_k.

    Raises:
        InputError: no piece, different lengths, or a number that is not finite.
    """

    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.slopes or len(self.slopes) != len(self.intercepts):
            got = f"{len(self.slopes)} slopes and {len(self.intercepts)} intercepts"
            raise InputError("loss", "as many slopes as intercepts, at least one", got)
        if not np.isfinite([self.slopes, self.intercepts]).all():
            raise InputError("loss", "finite slopes and intercepts", f"{self.slopes} and {self.intercepts}")

    @property
    def name(self) -> str:
        """How many pieces it has."""
        return f"affine max of {len(self.slopes)}"

    @property
    def decreasing(self) -> bool:
        """Whether no slope is positive."""
        return max(self.slopes) <= 0

    @property
    def positive_domain(self) -> bool:
        """False: affine pieces are defined everywhere."""
        return False

    def value(self, x: Array) -> Array:
        """max_k a_k x + b_k, [N]."""
        return namespace(x).amax(self.pieces(x), 1)

    def derivative(self, x: Array) -> Array:
        """The slope of the first piece that attains the maximum, [N]."""
        return namespace(x).take(_like(self.slopes, x), self.pieces(x).argmax(1))

    def pieces(self, x: Array) -> Array:
        """a_k x + b_k, [N, K]."""
        return x[:, None] * _like(self.slopes, x) + _like(self.intercepts, x)


def _like(values: tuple[float, ...], x: Array) -> Array:
    if is_tensor(x):  # a copy that the device need not be waited for
        return namespace(x).tensor(values, dtype=x.dtype).to(x.device, non_blocking=True)
    return _array(values)


@lru_cache(maxsize=64)
def _array(values: tuple[float, ...]) -> Array:
    """Read-only, because it is made once for all calls: for small samples making it costs as much as solving."""
    return frozen(np.array(values))


def as_loss(loss: LossLike) -> Loss:
    """`loss` itself, or the affine maximum of its (slope, intercept) pairs.

    Raises:
        InputError: neither a loss nor pairs of finite numbers.
    """
    if isinstance(loss, ConvexLoss | AffineMax):
        return loss
    if isinstance(loss, Sequence | np.ndarray):
        return _from_pairs(loss)
    if all(hasattr(loss, name) for name in ("value", "derivative", "name", "decreasing", "positive_domain")):
        own: Loss = loss
        return own
    raise InputError("loss", ACCEPTED, repr(loss))


def _from_pairs(pairs: Sequence[tuple[float, float]] | Array) -> AffineMax:
    try:
        table = np.array(pairs, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError("loss", ACCEPTED, repr(pairs)) from error
    if table.ndim != 2 or table.shape[1] != 2:
        raise InputError("loss", ACCEPTED, f"shape {table.shape}")
    return AffineMax(tuple(table[:, 0].tolist()), tuple(table[:, 1].tolist()))


def check_support(support: tuple[float, float], loss: Loss) -> tuple[float, float]:
    """(lo, hi) as floats.

    Raises:
        InputError: not two finite numbers with lo < hi, or lo <= 0 for a loss of positive arguments.
    """
    try:
        low, high = (float(end) for end in support)
    except (TypeError, ValueError) as error:
        raise InputError("support", "two numbers (lo, hi)", repr(support)) from error
    if not (-np.inf < low < high < np.inf):
        raise InputError("support", "finite lo < hi", f"({low:g}, {high:g})")
    if loss.positive_domain and low <= 0:
        remedy = "Choose a small positive lo; it bounds the loss of a hopeless atom."
        raise InputError("support", f"lo > 0 for the loss {loss.name!r}", f"lo = {low:g}", remedy)
    return low, high


def at_ends(loss: Loss, support: tuple[float, float]) -> tuple[tuple[float, float], tuple[float, float]]:
    """(l(lo), l(hi)) and (l'(lo), l'(hi)).

    Raises:
        InputError: naming `loss`: one of them is not finite, or the loss does not map [2] to [2].
    """
    # Of the losses defined here it is known that they stay what they are.
    return _known_ends(loss, support) if isinstance(loss, AffineMax) or loss is NEG_LOG else _ends(loss, support)


@lru_cache(maxsize=64)
def _known_ends(loss: Loss, support: tuple[float, float]) -> tuple[tuple[float, float], tuple[float, float]]:
    return _ends(loss, support)


def _ends(loss: Loss, support: tuple[float, float]) -> tuple[tuple[float, float], tuple[float, float]]:
    ends = np.array(support)
    with np.errstate(all="ignore"):
        values, slopes = np.asarray(loss.value(ends)), np.asarray(loss.derivative(ends))
    for what, found in (("value", values), ("derivative", slopes)):
        if found.shape != ends.shape:
            got = f"shape {found.shape} from the {what} of {loss.name!r} for shape {ends.shape}"
            raise InputError("loss", "a value and a derivative for every atom", got)
        if not np.isfinite(found).all():
            at, number = next((end, x) for end, x in zip(support, found.tolist(), strict=True) if not np.isfinite(x))
            got = f"a {what} of {number} at {at:g} for {loss.name!r}"
            remedy = "Choose a support on whose ends it is finite."
            raise InputError("loss", "a finite value and derivative at both ends of the support", got, remedy)
    return (float(values[0]), float(values[1])), (float(slopes[0]), float(slopes[1]))


def tangents(loss: LossLike, support: tuple[float, float], pieces: int) -> AffineMax:
    """The maximum of `loss`'s tangents at points from lo to hi, both ends included: a minorant exact at the points.

    The points form a geometric sequence, which suits losses that are steep at lo; an arithmetic one if lo <= 0.

    Args:
        loss: the loss; its value and derivative are evaluated on a NumPy array.
        support: (lo, hi).
        pieces: how many tangents, >= 2.

    Raises:
        InputError: naming `loss`, `support` or `pieces`; a loss is finite at the ends of the support.
    """
    convex = as_loss(loss)
    low, high = check_support(support, convex)
    if isinstance(pieces, bool) or not isinstance(pieces, int | np.integer) or pieces < FEWEST_PIECES:
        raise InputError("pieces", f"an integer >= {FEWEST_PIECES}", repr(pieces))
    at_ends(convex, (low, high))
    points = np.geomspace(low, high, pieces) if low > 0 else np.linspace(low, high, pieces)
    slopes = np.asarray(convex.derivative(points), dtype=np.float64)
    values = np.asarray(convex.value(points), dtype=np.float64)
    return AffineMax(tuple(slopes.tolist()), tuple((values - slopes * points).tolist()))


def tangent_gap(loss: LossLike, affine: AffineMax, support: tuple[float, float]) -> float:
    """The largest l - max_k l_k on the support, at least 0.

    Between neighbouring breakpoints of the pieces the difference is convex, so its maximum is at a breakpoint or an
    end; all intersections of two pieces are tried. Exact for any convex loss.
    """
    convex = as_loss(loss)
    low, high = check_support(support, convex)
    slopes, intercepts = np.array(affine.slopes), np.array(affine.intercepts)
    rise = slopes[:, None] - slopes
    crossing = (intercepts - intercepts[:, None]) / np.where(rise == 0, np.inf, rise)
    inside = crossing[(rise != 0) & (crossing > low) & (crossing < high)]
    points = np.concatenate((inside, (low, high)))
    return max(0.0, float((convex.value(points) - affine.value(points)).max()))

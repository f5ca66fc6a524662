"""Worst-case label flips: the adversary swaps chosen and rejected of some pairs, at a price per pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sera_solvers.arrays import Array, Scalar, as_float64, as_scalar, finite, frozen, is_tensor, namespace, plain
from sera_solvers.filling import fill


@dataclass(frozen=True, eq=False)
class FlipCase:
    """The worst distribution of labels within a flipping budget.

    Attributes:
        value: worst-case mean logistic loss, mean((1 - f) softplus(-m) + f softplus(m)).
        empirical_value: mean softplus(-m).
        flip: [N] in [0, 1], the share of each pair's mass whose label is flipped; used as a per-pair label smoothing
            it makes the smoothed logistic loss the worst-case loss.
        dual_price: what one more unit of radius would gain.
        radius: the budget.
        cost: the price of one flip.
        status: "optimal".
    """

    value: Scalar
    empirical_value: Scalar
    flip: Array
    dual_price: Scalar
    radius: Scalar
    cost: Scalar
    status: str = "optimal"

    def __post_init__(self) -> None:
        frozen(self.flip)

    @property
    def flipped(self) -> Scalar:
        """Share of all mass that is flipped, in [0, 1]."""
        return self.flip.sum() / len(self.flip)

    def __str__(self) -> str:
        return "\n".join(
            [
                f"Worst label flips of {len(self.flip)} pairs at cost {_text(self.cost)} ({self.status})",
                f"  radius         {_text(self.radius)}",
                f"  value          {_text(self.value)}  (empirical {_text(self.empirical_value)})",
                f"  dual price     {_text(self.dual_price)}  per unit of radius",
                f"  mass flipped   {_text(self.flipped)}",
            ]
        )


@np.errstate(all="ignore")
def label_flip(margins: Array, radius: Scalar, cost: Scalar = 1.0) -> FlipCase:
    """Worst-case logistic loss when labels may be flipped: max over f of mean of the loss, mean(f) cost <= radius.

    A flip changes the loss of a pair from softplus(-m) to softplus(m), a gain of exactly m. So the most confident
    pairs flip first, pairs the model already gets wrong never, and pairs of equal margin share what is left.
    This is the ambiguity set of distributionally robust logistic regression, a Wasserstein ball over features and
    labels, with features fixed; `cost` is its label cost kappa, and an infinite one would mean labels are trusted.
    Nothing waits for a device; there, input that the host would refuse makes every result nan.

    Args:
        margins: [N] finite, beta times the margin: the argument of the logistic loss; > 0 where the model agrees with
            the label.
        radius: >= 0; radius / cost is the share of labels that may be flipped.
        cost: price of flipping one label, > 0 and finite.

    Returns:
        The worst case; `flip` is exactly 0 at radius 0.

    Raises:
        InputError: margins empty, not 1-D or not finite; radius or cost out of range.

    Source: Shafieezadeh-Abadeh, Mohajerin Esfahani and Kuhn 2015, the ambiguity set of Theorem 1.
    """
    margins = as_float64(margins, "margins")
    xp = namespace(margins)
    zero = xp.zeros_like(margins[0]) + finite(margins, "margins")
    radius, cost = as_scalar(radius, "radius") + zero, as_scalar(cost, "cost", above=True) + zero
    # counted in flips, not in cost, so that a budget of whole pairs flips them whole
    flip, price = fill(margins, xp.ones_like(margins), len(margins) * (radius / cost))
    spoiler = 0 * radius + 0 * cost
    base = xp.logaddexp(-margins, xp.zeros_like(margins))
    value = (base + flip * margins).mean() + spoiler
    return FlipCase(
        value=plain(value),
        empirical_value=plain(base.mean()),
        flip=flip + spoiler,
        dual_price=plain(price / cost + spoiler),
        radius=plain(radius),
        cost=plain(cost),
    )


def _text(x: Scalar) -> str:
    """A scalar in six digits; the word 'unknown' on the meta device, which holds no values."""
    return "unknown" if is_tensor(x) and x.is_meta else f"{float(x):.6g}"

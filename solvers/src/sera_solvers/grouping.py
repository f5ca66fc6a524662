"""Worst cases of large samples, group by group, and what the grouping costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from sera_solvers.arrays import Array, Scalar, as_float64, frozen, namespace, plain
from sera_solvers.errors import InputError
from sera_solvers.result import WorstCase


@dataclass(frozen=True, eq=False)
class Grouped:
    """A worst case put together from groups: feasible for the whole sample, so never worse than the optimum.

    Attributes:
        value: mean of the groups' values, weighted by size.
        optimum: the value of the ungrouped worst case.
        error: optimum - value, >= 0 up to the solver's accuracy.
        dual_price: mean of the groups' prices, weighted by size.
        weights: [N] as in `WorstCase`; equal atoms share.
        moved: [N] likewise.
        groups: how many groups were solved.
    """

    value: Scalar
    optimum: Scalar
    error: Scalar
    dual_price: Scalar
    weights: Array
    moved: Array
    groups: int

    def __post_init__(self) -> None:
        for field in fields(self):
            frozen(getattr(self, field.name))


def grouped(
    solve: Callable[[Array], WorstCase], xi: Array, group_size: int, *, whole: WorstCase | None = None
) -> Grouped:
    """Deals the atoms to ceil(N / group_size) groups by rank, solves each, and reports the loss against the optimum.

    Dealing the sorted atoms in turn gives every group nearly the sample's own distribution, whatever the order of xi.

    Args:
        solve: the worst case of a sample [n], such as a `wasserstein` with its options bound.
        xi: [N] atoms.
        group_size: the most atoms in a group, >= 1.
        whole: the worst case of all of xi, if known; otherwise `solve` is called once more, on everything.

    Raises:
        InputError: naming `xi` or `group_size`; and whatever `solve` raises.
    """
    atoms = as_float64(xi, "xi")
    if isinstance(group_size, bool) or not isinstance(group_size, int | np.integer) or group_size < 1:
        raise InputError("group_size", "an integer >= 1", repr(group_size))
    if whole is not None and len(whole.weights) != len(atoms):
        raise InputError("whole", f"a worst case of {len(atoms)} atoms", f"one of {len(whole.weights)}")
    xp, count = namespace(atoms), len(atoms)
    groups = -(-count // int(group_size))
    order = xp.argsort(atoms, stable=True)
    hands = [order[first::groups] for first in range(groups)]
    cases = [solve(atoms[hand]) for hand in hands]
    optimum = (solve(atoms) if whole is None else whole).value
    value = sum(len(hand) * case.value for hand, case in zip(hands, cases, strict=True)) / count
    price = sum(len(hand) * case.dual_price for hand, case in zip(hands, cases, strict=True)) / count
    weights, moved = xp.empty_like(atoms), xp.empty_like(atoms)
    for hand, case in zip(hands, cases, strict=True):
        weights[hand], moved[hand] = case.weights, case.moved
    return Grouped(
        value=plain(value),
        optimum=plain(optimum),
        error=plain(optimum - value),
        dual_price=plain(price),
        weights=_shared(weights, atoms, order),
        moved=_shared(moved, atoms, order),
        groups=groups,
    )


def _shared(values: Array, atoms: Array, order: Array) -> Array:
    """`values` with equal atoms given their mean, so that it does not matter which of them met which group."""
    xp = namespace(atoms)
    ranked, total = atoms[order], xp.cumsum(values[order], 0)
    total = xp.concatenate((xp.zeros_like(total[:1]), total))
    first, past = xp.searchsorted(ranked, atoms, side="left"), xp.searchsorted(ranked, atoms, side="right")
    mean = (total[past] - total[first]) / (past - first)
    return xp.where(past - first > 1, mean, values)

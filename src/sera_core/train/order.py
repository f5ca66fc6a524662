"""In which order pairs are trained on, and which rank and micro-batch of an optimiser step takes which."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """A pair to train on, by index. A filler (`counted` false) only keeps a rank busy and never changes a loss.

    `place` is its number within the optimiser step, however the step is shared out.
    """

    pair: int
    counted: bool
    place: int = 0


class EpochBatches(Sampler[list[Draw]]):
    """Micro-batches of one rank; which pairs an optimiser step holds depends on (seed, epoch) alone.

    An optimiser step of `world` ranks with `steps` micro-batches of `size` pairs each takes the next pairs of one
    permutation, so the effective batch is the same whether it is split over ranks, micro-batches or not at all. Ranks
    and micro-batches take equally many of them, one more or less in the last step, and about equally many tokens by
    `costs`, the tokens of every pair: the largest share of a step goes to the rank that has had least so far in the
    epoch. No pair is left out or repeated; a rank without a pair gets a filler. Set `epoch` before iterating.
    """

    def __init__(
        self, costs: Sequence[int], size: int, seed: int, rank: int = 0, world: int = 1, steps: int = 1
    ) -> None:
        self.epoch = 0
        self._costs, self._size, self._seed = np.asarray(costs), size, seed
        self._rank, self._world, self._steps = rank, world, steps

    def __len__(self) -> int:
        return -(-len(self._costs) // (self._size * self._world))

    def __iter__(self) -> Iterator[list[Draw]]:
        order = np.random.default_rng((self._seed, self.epoch)).permutation(len(self._costs))
        span = self._size * self._world * self._steps
        so_far = [0] * self._world
        for start in range(0, len(order), span):
            step = order[start : start + span]
            costs = self._costs[step].tolist()
            shares = _by_need(balanced(costs, _even(len(step), self._world)), costs, so_far)
            mine = shares[self._rank]
            batches = _even(len(mine), -(-len(step) // (self._size * self._world)))
            for chosen in balanced([costs[place] for place in mine], batches):
                places = [mine[i] for i in chosen]
                yield [Draw(int(step[place]), True, place) for place in places] or [Draw(int(step[0]), False)]


def _by_need(shares: list[list[int]], costs: Sequence[int], so_far: list[int]) -> list[list[int]]:
    """Shares by rank, the costliest for the rank that has had least; adds them to what each has had `so_far`."""
    loads = [sum(costs[item] for item in share) for share in shares]
    found: list[list[int]] = [[] for _ in shares]
    needy = sorted(range(len(shares)), key=lambda rank: (so_far[rank], rank))
    heavy = sorted(range(len(shares)), key=lambda share: (-loads[share], share))
    for rank, share in zip(needy, heavy, strict=True):
        found[rank] = shares[share]
        so_far[rank] += loads[share]
    return found


def balanced(costs: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Shares of given `sizes`, which add up to as many as there are costs, with sums of costs as equal as may be.

    The costliest item goes where least is, then items are swapped between the largest and the smallest share as long as
    that narrows their gap. Items are numbers of `costs`, ascending within a share.
    """
    shares: list[list[int]] = [[] for _ in sizes]
    loads = [0] * len(sizes)
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        share = min((s for s in range(len(sizes)) if len(shares[s]) < sizes[s]), key=lambda s: (loads[s], s))
        shares[share].append(item)
        loads[share] += int(costs[item])
    while swap := _best_swap(costs, shares, loads):
        (high, out), (low, back) = swap
        shares[high][out], shares[low][back] = shares[low][back], shares[high][out]
        moved = int(costs[shares[low][back]]) - int(costs[shares[high][out]])
        loads[high] -= moved
        loads[low] += moved
    return [sorted(share) for share in shares]


def _best_swap(
    costs: Sequence[int], shares: Sequence[Sequence[int]], loads: Sequence[int]
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """(share, slot) of the two items whose swap narrows the gap between largest and smallest share most, or None."""
    used = [s for s in range(len(shares)) if shares[s]]
    if len(used) < 2:
        return None
    high, low = max(used, key=lambda s: (loads[s], -s)), min(used, key=lambda s: (loads[s], s))
    gap = loads[high] - loads[low]
    others = sorted((int(costs[item]), slot) for slot, item in enumerate(shares[low]))
    found: tuple[float, tuple[int, int], tuple[int, int]] | None = None
    for slot, item in enumerate(shares[high]):
        # The swap closes the gap where the items differ by half of it.
        place = bisect(others, (int(costs[item]) - gap // 2, -1))
        for cost, other in others[max(place - 1, 0) : place + 1]:
            left = (abs(gap - 2 * (int(costs[item]) - cost)), (high, slot), (low, other))
            found = left if found is None else min(found, left)
    return found[1:] if found is not None and found[0] < gap else None


def _even(items: int, shares: int) -> list[int]:
    """Sizes of `shares` that differ by one at most, the larger ones first."""
    return [items // shares + (share < items % shares) for share in range(shares)]

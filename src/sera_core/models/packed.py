"""Groups as packs without padding: a prompt once, then its responses, which see the prompt and themselves only.

The last token of a response predicts nothing, so it is no part of its pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sera_core.models.attention import Layout, Shape, owners
from sera_core.models.batches import Batch, Group, ids_tensor
from sera_core.records import Ids

# Prompts that begin alike, by a template or a system message, share at least so many tokens, or none: sharing costs a
# copy of their keys and values per group.
WORTH_SHARING = 8
# How many times the token budget those copies may be.
_COPIES = 2


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Responses to one prompt that go into one pack, with their numbers among all that were asked for."""

    prompt: Ids
    responses: tuple[Ids, ...]
    numbers: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(len(response) - 1 for response in self.responses)


def packed_batches(groups: Sequence[Group], token_budget: int | None, device: torch.device) -> list[Batch]:
    """Packs of at most `token_budget` tokens; one pack where it is None.

    Groups of one prompt are joined, and what opens all prompts of a pack is there once. Longest first, so that a pack
    too big for the memory fails at once. Responses to a prompt stay in one pack as long as they fit; one response that
    is longer than the budget with its prompt goes alone.
    """
    packs: list[_Pack] = []
    for part in _in_order([part for group in _joined(groups) for part in _parts(group, token_budget)]):
        if not packs or not packs[-1].add(part, token_budget):
            packs.append(_Pack(part))
    return [_batch(pack, device) for pack in packs]


class _Pack:
    """Parts whose prompts begin with the same `alike` tokens, and all have more."""

    def __init__(self, part: _Part) -> None:
        self.parts, self.alike = [part], len(part.prompt) - 1
        self._apart = part.tokens

    def add(self, part: _Part, token_budget: int | None) -> bool:
        """Whether another part fits; it is added then."""
        alike, apart = min(self.alike, _alike(self.parts[0].prompt, part.prompt)), self._apart + part.tokens
        parts = len(self.parts) + 1
        opening = _opening(parts, alike)
        if token_budget is not None:
            tokens = apart - (parts - 1) * opening
            # Every group has a copy of the opening's keys and values.
            if tokens > token_budget or parts * opening > _COPIES * token_budget:
                return False
        self.parts.append(part)
        self.alike, self._apart = alike, apart
        return True

    @property
    def opening(self) -> int:
        """Tokens that open all prompts and are there once."""
        return _opening(len(self.parts), self.alike)


def _opening(parts: int, alike: int) -> int:
    return alike if parts > 1 and alike >= WORTH_SHARING else 0


def _in_order(parts: Sequence[_Part]) -> list[_Part]:
    """Longest first, but those whose prompts begin alike in a row, where the longest of them stands."""

    def size(part: _Part) -> tuple[int, int]:
        return -part.tokens, part.numbers[0]

    alike: dict[bytes, list[_Part]] = {}
    for part in parts:
        if len(part.prompt) > WORTH_SHARING:
            alike.setdefault(part.prompt[:WORTH_SHARING].tobytes(), []).append(part)
    rows = [sorted(row, key=size) for row in alike.values() if len(row) > 1]
    shared = {number for row in rows for part in row for number in part.numbers}
    rest = sorted((part for part in parts if part.numbers[0] not in shared), key=size)
    return [part for row in sorted([*rows, *([rest] if rest else [])], key=lambda row: size(row[0])) for part in row]


def _alike(first: Ids, second: Ids) -> int:
    """With how many tokens both begin; less than either has, so that each keeps one of its own."""
    shorter = min(len(first), len(second)) - 1
    different = first[:shorter] != second[:shorter]
    return int(np.argmax(different)) if different.any() else shorter


def _joined(groups: Sequence[Group]) -> list[_Part]:
    """One part per distinct prompt, in order of appearance."""
    by_prompt: dict[bytes, list[tuple[int, Ids]]] = {}
    prompts: dict[bytes, Ids] = {}
    number = 0
    for group in groups:
        key = group.prompt.tobytes()
        prompts[key] = group.prompt
        for response in group.responses:
            by_prompt.setdefault(key, []).append((number, response))
            number += 1
    return [
        _Part(prompts[key], tuple(ids for _, ids in members), tuple(number for number, _ in members))
        for key, members in by_prompt.items()
    ]


def _parts(part: _Part, token_budget: int | None) -> list[_Part]:
    """`part` cut where it passes the budget; the prompt is repeated then."""
    if token_budget is None or part.tokens <= token_budget:
        return [part]
    cuts: list[list[int]] = []
    room = 0
    for index, response in enumerate(part.responses):
        if not cuts or len(response) - 1 > room:
            cuts.append([])
            room = max(token_budget - len(part.prompt), 0)
        cuts[-1].append(index)
        room -= len(response) - 1
    return [
        _Part(part.prompt, tuple(part.responses[i] for i in cut), tuple(part.numbers[i] for i in cut)) for cut in cuts
    ]


def _batch(pack: _Pack, device: torch.device) -> Batch:
    opening, parts = pack.opening, pack.parts
    lengths = [tuple(map(len, part.responses)) for part in parts]
    shapes = tuple(
        Shape(len(part.prompt) - opening, tuple(length - 1 for length in each if length > 1))
        for part, each in zip(parts, lengths, strict=True)
    )
    rows = [(part.prompt[opening:], *(response[:-1] for response in part.responses)) for part in parts]
    ids = ids_tensor([parts[0].prompt[:opening], *(ids for row in rows for ids in row)])
    positions = torch.cat([torch.arange(opening), owners(shapes, opening)[1]])
    return Batch(
        ids=ids[None].to(device),
        positions=positions[None].to(device),
        mask=None,
        layout=Layout(shapes, device, opening),
        places=_places(shapes, lengths, opening).to(device),
        targets=ids_tensor(ids for part in parts for ids in part.responses).to(device),
        responses=tuple(number for part in parts for number in part.numbers),
        lengths=tuple(length for each in lengths for length in each),
        useful=len(ids),
    )


def _places(shapes: Sequence[Shape], lengths: Sequence[Sequence[int]], opening: int) -> Tensor:
    """Where tokens of responses are predicted, int64 [T]: each one token before, the first where its prompt ends."""
    sizes = np.array([length for each in lengths for length in each])
    begin, prompt_ends, begins = opening, [], []
    for shape, each in zip(shapes, lengths, strict=True):
        begin += shape.prompt
        prompt_ends += [begin] * len(each)
        begins += (begin + np.cumsum([0, *(length - 1 for length in each)])[:-1]).tolist()
        begin += sum(shape.responses)
    first = sizes.cumsum() - sizes
    found = np.arange(sizes.sum()) + np.repeat(np.array(begins) - 1 - first, sizes)
    found[first] = np.array(prompt_ends) - 1
    return torch.from_numpy(found)

"""Groups as packs without padding: a prompt once, then its responses, which see the prompt and themselves only.

The last token of a response predicts nothing, so it is no part of its pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sera_core.models.attention import Layout, Shape
from sera_core.models.batches import Batch, Group, ids_tensor
from sera_core.records import Ids


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

    Groups of one prompt are joined. Longest first, so that a pack too big for the memory fails at once. Responses to a
    prompt stay in one pack as long as they fit; one response that is longer than the budget with its prompt goes alone.
    """
    packs: list[list[_Part]] = []
    room = 0
    parts = [part for group in _joined(groups) for part in _parts(group, token_budget)]
    for part in sorted(parts, key=lambda part: (-part.tokens, part.numbers[0])):
        if not packs or (token_budget is not None and part.tokens > room):
            packs.append([])
            room = token_budget or 0
        packs[-1].append(part)
        room -= part.tokens
    return [_pack(pack, device) for pack in packs]


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
            room = token_budget - len(part.prompt)
        cuts[-1].append(index)
        room -= len(response) - 1
    return [
        _Part(part.prompt, tuple(part.responses[i] for i in cut), tuple(part.numbers[i] for i in cut)) for cut in cuts
    ]


def _pack(parts: Sequence[_Part], device: torch.device) -> Batch:
    lengths = [tuple(map(len, part.responses)) for part in parts]
    shapes = [
        Shape(len(part.prompt), tuple(length - 1 for length in each if length > 1))
        for part, each in zip(parts, lengths, strict=True)
    ]
    places, start = [], 0
    for part, each in zip(parts, lengths, strict=True):
        places.append(_places(start + len(part.prompt), each))
        start += part.tokens
    ids = ids_tensor(ids for part in parts for ids in (part.prompt, *(response[:-1] for response in part.responses)))
    return Batch(
        ids=ids[None].to(device),
        positions=torch.cat([shape.owners()[1] for shape in shapes])[None].to(device),
        mask=None,
        layout=Layout(tuple(shapes), device),
        places=torch.cat(places).to(device),
        targets=ids_tensor(ids for part in parts for ids in part.responses).to(device),
        responses=tuple(number for part in parts for number in part.numbers),
        lengths=tuple(length for each in lengths for length in each),
        useful=len(ids),
    )


def _places(end: int, lengths: Sequence[int]) -> Tensor:
    """Where responses are predicted whose prompt ends before `end`: its last token gives the first token of each."""
    found, at = [], end
    for length in lengths:
        found.append(torch.cat([torch.tensor([end - 1]), torch.arange(at, at + length - 1)]))
        at += length - 1
    return torch.cat(found)

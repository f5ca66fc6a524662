"""Groups as packs without padding: a prompt once, then its responses, which see the prompt and themselves only."""

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
        return len(self.prompt) + sum(map(len, self.responses))


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
        if not cuts or len(response) > room:
            cuts.append([])
            room = token_budget - len(part.prompt)
        cuts[-1].append(index)
        room -= len(response)
    return [
        _Part(part.prompt, tuple(part.responses[i] for i in cut), tuple(part.numbers[i] for i in cut)) for cut in cuts
    ]


def _pack(parts: Sequence[_Part], device: torch.device) -> Batch:
    shapes = [Shape(len(part.prompt), tuple(map(len, part.responses))) for part in parts]
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + part.tokens)
    places = [_places(shape, start) for shape, start in zip(shapes, starts, strict=False)]
    ids = ids_tensor(ids for part in parts for ids in (part.prompt, *part.responses))
    return Batch(
        ids=ids[None].to(device),
        positions=torch.cat([_positions(shape) for shape in shapes])[None].to(device),
        mask=None,
        layout=Layout(tuple(shapes), device),
        places=torch.cat(places).to(device),
        targets=ids_tensor(ids for part in parts for ids in part.responses).to(device),
        responses=tuple(number for part in parts for number in part.numbers),
        lengths=tuple(length for shape in shapes for length in shape.responses),
        useful=len(ids),
    )


def _positions(shape: Shape) -> Tensor:
    """Positions within the dialogue: every response starts where the prompt ends."""
    return torch.cat([torch.arange(shape.prompt), *(torch.arange(n) + shape.prompt for n in shape.responses)])


def _places(shape: Shape, start: int) -> Tensor:
    """Where a group that starts at `start` predicts its response tokens: the prompt's last token gives each first."""
    found, at = [], start + shape.prompt
    for length in shape.responses:
        found.append(torch.cat([torch.tensor([start + shape.prompt - 1]), torch.arange(at, at + length - 1)]))
        at += length
    return torch.cat(found)

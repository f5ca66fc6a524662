"""Attention inside a pack: every response sees its prompt and itself, nothing else, without a mask over the pack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from sera_core.models.capped import capped_attention

# The name under which transformers finds the attention below.
PACKED = "packed_sdpa"
# Groups up to this many tokens share one call, padded to the longest of them: many calls cost more than the padding.
_SHORT = 128
# Queries of responses beside the first that share one call; each sees the others' keys masked.
_TAILS = 96
# On a CPU causal attention takes as long as that of all to all, so queries are cut into calls of at least so many, and
# so many calls at most.
_ROWS, _PARTS = 96, 8

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Shape:
    """Tokens of a prompt, or of what follows its opening, and of each response to it, as far as a pack holds them."""

    prompt: int
    responses: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of the group in a pack."""
        return self.prompt + sum(self.responses)


def owners(shapes: Sequence[Shape], before: int = 0) -> tuple[Tensor, Tensor]:
    """Of every token of `shapes`, one after another: its owner and its position, int32 [n].

    The owner is 0 for a prompt and k for response k to it. Prompts start at position `before`, every response where its
    prompt ends.
    """
    lengths = np.array([length for shape in shapes for length in (shape.prompt, *shape.responses)], dtype=np.int32)
    number = np.concatenate([np.arange(1 + len(shape.responses), dtype=np.int32) for shape in shapes])
    ends = np.array([shape.prompt for shape in shapes for _ in range(1 + len(shape.responses))], dtype=np.int32)
    first = before + np.where(number > 0, ends, 0) - (lengths.cumsum() - lengths)
    position = np.arange(lengths.sum()) + np.repeat(first, lengths)
    return torch.from_numpy(np.repeat(number, lengths)), torch.from_numpy(position.astype(np.int32))


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Which token of a pack sees which: groups one after another, each a prompt followed by its responses.

    The first `opening` tokens of the pack open all its prompts, whose shapes count only what follows. A layer with a
    sliding window sees the last `window` positions of the dialogue, its own included. `asked` counts how many layers
    asked for which window.
    """

    shapes: tuple[Shape, ...]
    device: torch.device
    opening: int = 0
    asked: Counter[int | None] = field(default_factory=Counter)
    _known: dict[tuple[int | None, Callable[..., Any]], Any] = field(default_factory=dict)

    def once(self, window: int | None, make: Callable[[Layout, int | None], Made]) -> Made:
        """What `make` gives for a layer with that window, made for the first such layer."""
        self.asked[window] += 1
        if (window, make) not in self._known:
            self._known[window, make] = make(self, window)
        found: Made = self._known[window, make]
        return found


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,  # noqa: ANN401  # transformers' interface
) -> tuple[Tensor, None]:
    """Attention of query [b, heads, L, d] as transformers asks for it: output [b, L, heads, d].

    Calls without a layout are its own SDPA attention, or where scores have a cap, which that leaves out, our own.
    """
    layout: Layout | None = kwargs.pop("packed_layout", None)
    cap: float | None = kwargs.get("softcap")
    if layout is None and cap is None:
        given: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return given
    repeats = query.shape[1] // key.shape[1]
    # On a CPU queries share keys without copies of them; elsewhere that would cost the fast kernels.
    grouped = repeats > 1 and query.device.type == "cpu" and cap is None
    if not grouped:
        key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        if cap is not None:
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            return capped_attention(query, key, value, mask, cap=cap, scale=scale, dropout=dropout).transpose(1, 2)
        return scaled_dot_product_attention(
            query, key, value, mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
        ).transpose(1, 2)

    if layout is None:
        return attend(query, key, value, attention_mask), None
    calls = layout.once(kwargs.get("sliding_window"), _calls)
    parts = _split((query, key, value), [call.tokens for call in calls])
    opening = parts[0] if layout.opening else None
    found = [
        call(attend, own, opening if number else None)
        for number, (call, own) in enumerate(zip(calls, parts, strict=True))
    ]
    return torch.cat(found, dim=1), None


Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Attention of queries [b, h, m, d] to keys [b, g, n, d] under a bool mask, None for causal: [b, m, h, d]."""
Known = tuple[Tensor, Tensor, Tensor]
"""Queries [b, h, n, d], keys and values [b, g, n, d] of n tokens."""


class _Alone:
    """One group, or what opens all: the prompt with the first response, some queries at a time, then the others."""

    def __init__(self, shape: Shape, window: int | None, device: torch.device, opening: int) -> None:
        self.tokens, self._before = shape.tokens, opening + shape.prompt
        first, *others = shape.responses or (0,)
        whole, tails = Shape(self._before, (first,)), _tails(others)
        ends = _ends(opening, whole.tokens) if device.type == "cpu" else [whole.tokens]
        starts = [opening, *ends[:-1]]
        self._sizes = [shape.prompt + first, *(sum(tail) for tail in tails)]
        self._rows = [end - start for start, end in zip(starts, ends, strict=True)]
        causal = len(ends) == 1 and not opening and (window is None or whole.tokens <= window)
        mask = None if causal else group_mask(whole, window, opening)
        # Of the prompt and the first response: how many keys are in sight, and which of them.
        self._head = [
            (end, mask if mask is None else mask[start - opening : end - opening, :end].to(device))
            for start, end in zip(starts, ends, strict=True)
        ]
        self._tails = [group_mask(Shape(self._before, tail), window, self._before).to(device) for tail in tails]

    def __call__(self, attend: Attend, own: Known, opening: Known | None) -> Tensor:
        (query, key, value), *tails = _split(own, self._sizes)
        if opening is not None:
            key, value = _after(opening[1], key), _after(opening[2], value)
        found = [
            attend(rows, key[:, :, :end], value[:, :, :end], mask)
            for rows, (end, mask) in zip(torch.split(query, self._rows, 2), self._head, strict=True)
        ]
        key, value = key[:, :, : self._before], value[:, :, : self._before]
        for mask, (query, own_key, own_value) in zip(self._tails, tails, strict=True):
            found.append(attend(query, _after(key, own_key), _after(value, own_value), mask))
        return torch.cat(found, dim=1)


class _Together:
    """Several short groups in one call, each padded to the longest."""

    def __init__(self, shapes: Sequence[Shape], window: int | None, device: torch.device, opening: int) -> None:
        lengths = torch.tensor([shape.tokens for shape in shapes])
        self.tokens, longest, self._rows = int(lengths.sum()), int(lengths.max()), len(shapes)
        slots = torch.arange(longest)
        taken = slots < lengths[:, None]
        # A padded slot repeats the group's first token; nobody sees it.
        gather = (lengths.cumsum(0) - lengths)[:, None] + torch.where(taken, slots, 0)
        self._gather = gather.flatten().to(device)
        self._keep = taken.flatten().nonzero().squeeze(1).to(device)
        self._full = bool(taken.all())
        owner, position = (values[gather] for values in owners(shapes, opening))
        own = _sees((owner, position), (owner, position), window) & taken[:, :, None] & taken[:, None]
        every = torch.arange(opening, dtype=torch.int32).expand(self._rows, -1)
        mask = torch.cat([_sees((owner, position), (torch.zeros_like(every), every), window), own], dim=2)
        # A row of a padded slot must see something.
        mask[:, :, 0] |= ~taken
        self._mask = mask[:, None].to(device)

    def __call__(self, attend: Attend, own: Known, opening: Known | None) -> Tensor:
        query, key, value = map(self._rowed, own)
        if opening is not None:
            key, value = _after(opening[1], key), _after(opening[2], value)
        flat = attend(query, key, value, self._mask).flatten(0, 1)
        return (flat if self._full else flat[self._keep])[None]

    def _rowed(self, tensor: Tensor) -> Tensor:
        """[1, h, tokens, d] as [groups, h, longest, d]."""
        tokens = tensor[0].transpose(0, 1)
        if not self._full:
            tokens = tokens[self._gather]
        return tokens.reshape(self._rows, -1, *tokens.shape[1:]).transpose(1, 2)


def _split(tokens: Known, sizes: list[int]) -> list[Known]:
    """Consecutive parts of those sizes; slices would each have a gradient as large as the whole."""
    query, key, value = (torch.split(tensor, sizes, 2) for tensor in tokens)
    return list(zip(query, key, value, strict=True))


def _after(before: Tensor, own: Tensor) -> Tensor:
    """What is [b, h, n, d] of a group's own tokens behind what is [1, h, o, d] of those before them."""
    return torch.cat([before.expand(len(own), -1, -1, -1), own], dim=2)


def _ends(start: int, end: int) -> list[int]:
    """Where to cut queries from `start` to `end`: each call sees no keys beyond its own end."""
    step = max(_ROWS, -(-(end - start) // _PARTS))
    return [*range(start + step, end, step), end]


_Call = _Alone | _Together


def _calls(layout: Layout, window: int | None) -> tuple[_Call, ...]:
    """The attention calls of a layer, over consecutive parts of the pack; what opens all prompts is the first."""
    given = (window, layout.device)
    calls: list[_Call] = [_Alone(Shape(layout.opening, ()), *given, 0)] if layout.opening else []
    for run in _runs(layout.shapes):
        short = _short(run[0])
        calls.append(_Together(run, *given, layout.opening) if short else _Alone(run[0], *given, layout.opening))
    return tuple(calls)


def group_mask(shape: Shape, window: int | None, start: int = 0) -> Tensor:
    """Bool [n - start, n], True where the row's token sees the column's, for the tokens of one group from `start` on.

    A response sees the prompt and its own tokens up to itself. Within a sliding `window` positions differ by less than
    it.
    """
    owner, position = owners([shape])
    return _sees((owner[start:], position[start:]), (owner, position), window)


def _sees(query: tuple[Tensor, Tensor], key: tuple[Tensor, Tensor], window: int | None) -> Tensor:
    """Bool [..., m, n]: which of m tokens of a group see which of n, by owners and positions [..., m] and [..., n]."""
    (asks, at), (owner, position) = query, key
    distance = at[..., :, None] - position[..., None, :]
    seen = ((owner == 0)[..., None, :] | (asks[..., :, None] == owner[..., None, :])) & (distance >= 0)
    return seen if window is None else seen & (distance < window)


def _short(shape: Shape) -> bool:
    return shape.tokens <= _SHORT


def _runs(shapes: Sequence[Shape]) -> list[list[Shape]]:
    """Consecutive groups that share calls: short ones of which none is padded to much over its length."""
    runs: list[list[Shape]] = []
    least = most = 0
    for shape in shapes:
        size = shape.tokens
        if runs and size <= _SHORT and most <= _SHORT and 3 * max(most, size) <= 4 * min(least, size) + 24:
            runs[-1].append(shape)
            least, most = min(least, size), max(most, size)
        else:
            runs.append([shape])
            least = most = size
    return runs


def _tails(responses: Sequence[int]) -> list[tuple[int, ...]]:
    """Responses beside the first, grouped into calls of about `_TAILS` queries."""
    tails: list[tuple[int, ...]] = []
    for length in responses:
        if tails and sum(tails[-1]) + length <= _TAILS:
            tails[-1] = (*tails[-1], length)
        else:
            tails.append((length,))
    return tails

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

# The name under which transformers finds the attention below.
PACKED = "packed_sdpa"
# Groups up to this many tokens share one call, padded to the longest of them: many calls cost more than the padding.
_SHORT = 128
# Queries of responses beside the first that share one call; each sees the others' keys masked.
_TAILS = 256

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

    Calls without a layout are its own SDPA attention.
    """
    layout: Layout | None = kwargs.pop("packed_layout", None)
    if layout is None:
        given: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return given
    repeats = query.shape[1] // key.shape[1]
    # On a CPU queries share keys without copies of them; elsewhere that would cost the fast kernels.
    grouped = repeats > 1 and query.device.type == "cpu"
    if not grouped:
        key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
    calls = layout.once(kwargs.get("sliding_window"), _calls)

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return scaled_dot_product_attention(
            query, key, value, mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
        ).transpose(1, 2)

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
    """One group, or what opens all: the prompt with the first response, then the other responses, some at a time."""

    def __init__(self, shape: Shape, window: int | None, device: torch.device, opening: int) -> None:
        self.tokens, self._prompt = shape.tokens, shape.prompt
        first, *others = shape.responses or (0,)
        prompt, tails = opening + shape.prompt, _tails(others)
        self._sizes = [shape.prompt + first, *(sum(tail) for tail in tails)]
        whole = Shape(prompt, (first,))
        self._head = None if _sees_all(whole, window) else group_mask(whole, window, opening).to(device)
        # A long response is faster with the prompt's queries once more, which makes it causal, than under a mask.
        self._masks = [
            None
            if len(tail) == 1 and tail[0] > prompt and _sees_all(Shape(prompt, tail), window)
            else group_mask(Shape(prompt, tail), window, prompt).to(device)
            for tail in tails
        ]

    def __call__(self, attend: Attend, own: Known, opening: Known | None) -> Tensor:
        parts = _split(own, self._sizes)
        found = [_behind(attend, parts[0], opening, self._head)]
        if self._masks:
            before = _map(lambda tensor: tensor.narrow(2, 0, self._prompt), parts[0])
            if opening is not None:
                before = _map(_after, opening, before)
            found += [_behind(attend, part, before, mask) for part, mask in zip(parts[1:], self._masks, strict=True)]
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
        flat = _behind(attend, _map(self._rowed, own), opening, self._mask).flatten(0, 1)
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


def _map(change: Callable[..., Tensor], *tokens: Known) -> Known:
    """`change` of the queries, of the keys and of the values."""
    query, key, value = map(change, *tokens)
    return query, key, value


def _behind(attend: Attend, own: Known, before: Known | None, mask: Tensor | None) -> Tensor:
    """Attention [b, m, h, d] of a group's own m tokens to those `before` and to themselves, None for causal."""
    if before is None:
        return attend(*own, mask)
    query, key, value = own
    # Causal attention begins with the first key's token.
    asks = query if mask is not None else _after(before[0], query)
    found = attend(asks, _after(before[1], key), _after(before[2], value), mask)
    return found[:, -query.shape[2] :]


def _after(before: Tensor, own: Tensor) -> Tensor:
    """What is [b, h, n, d] of a group's own tokens behind what is [1, h, o, d] of those before them."""
    return torch.cat([before.expand(len(own), -1, -1, -1), own], dim=2)


def _sees_all(shape: Shape, window: int | None) -> bool:
    """Whether every token of a prompt with one response sees all those before it."""
    return window is None or shape.tokens <= window


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

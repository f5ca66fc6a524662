"""Decoding with `transformers`' own generate, from which rows that are finished drop out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer

from sera_core.models.generate.sampling import RowSampler

_SHARE = 4
_STEPS = 12


def settings(**values: object) -> GenerationConfig:
    """A generation configuration with `values` and nothing else."""
    return GenerationConfig(**values)  # type: ignore[no-untyped-call]  # transformers leaves it untyped


def decode(
    policy: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    sampler: RowSampler,
    *,
    cache: DynamicCache | None,
    stop: Sequence[int],
    pad: int,
    max_new_tokens: int,
) -> Tensor:
    """New ids int64 [b, n], n <= `max_new_tokens`, of left-padded prompts `ids` [b, l]; anything may follow a stop id.

    `cache` holds keys and values of all but each prompt's last token; it is used up. Rows leave it, and columns that
    only they filled, once a quarter of them is finished and enough steps are left to pay for the copy. Without a
    cache every row stays until the last one is finished. Call without gradient.
    """
    start, batch = ids.shape[1], len(ids)
    common: dict[str, Any] = {"eos_token_id": list(stop) or None, "pad_token_id": pad, "do_sample": False}
    if cache is None or not stop:
        more: dict[str, object] = {} if cache is None else {"past_key_values": cache}
        return _generate(policy, ids, mask, sampler, {**common, "max_new_tokens": max_new_tokens}, more)[:, start:]
    new = torch.full((batch, max_new_tokens), pad, device=ids.device)
    rows, stops, done = torch.arange(batch, device=ids.device), torch.tensor(stop, device=ids.device), 0
    while True:
        halt = _Halt(len(rows), stops, last=ids.shape[1] + max_new_tokens - done)
        more = {"past_key_values": cache, "stopping_criteria": StoppingCriteriaList([halt])}
        before = ids.shape[1]
        ids = _generate(policy, ids, mask, sampler, {**common, "max_new_tokens": max_new_tokens - done}, more)
        steps = ids.shape[1] - before
        new[rows, done : done + steps] = ids[:, before:]
        done += steps
        alive = (~torch.isin(ids[:, before:], stops).any(1)).nonzero().squeeze(1)
        if done == max_new_tokens or len(alive) == 0:
            return new[:, :done]
        mask = torch.cat((mask, mask.new_ones(len(mask), steps)), dim=1)[alive]
        empty = _drop(cache, alive, mask)
        ids, mask, rows = ids[alive, empty:], mask[:, empty:], rows[alive]
        sampler = sampler.keep(alive, dropped=empty)


class _Halt(StoppingCriteria):
    """Ends a call of generate as soon as going on without the finished rows pays; at width `last` it ends anyway."""

    def __init__(self, rows: int, stops: Tensor, last: int) -> None:
        self._finished = torch.zeros(rows, dtype=torch.bool, device=stops.device)
        self._stops = stops
        self._last = last

    def __call__(self, input_ids: Tensor, scores: Tensor | None, **_: object) -> Tensor:  # noqa: ARG002
        """Bool [b], all equal: whether to end the call."""
        self._finished |= torch.isin(input_ids[:, -1], self._stops)
        left = self._last - input_ids.shape[1]
        pays = left >= _STEPS and int(self._finished.sum()) * _SHARE >= len(self._finished)
        return torch.full_like(self._finished, pays)


def _generate(
    policy: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    sampler: RowSampler,
    values: Mapping[str, object],
    more: Mapping[str, object],
) -> Tensor:
    """Prompts and new ids, int64 [b, l + n]."""
    generate: Any = policy.generate
    written: Tensor = generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=settings(**values),
        logits_processor=LogitsProcessorList([sampler]),
        **more,
    )
    return written


def _drop(cache: DynamicCache, rows: Tensor, mask: Tensor) -> int:
    """Keep `rows` of the cache, without the columns on the left where the rows' `mask` is 0; how many those are.

    Layers that see a window count columns from the start, so that with them columns stay.
    """
    cache.batch_select_indices(rows)
    if not all(type(layer) is DynamicLayer for layer in cache.layers):
        return 0
    empty = int(mask.any(0).int().argmax())
    for layer in cache.layers if empty else ():
        held: Any = layer
        held.keys, held.values = held.keys[:, :, empty:], held.values[:, :, empty:]
    return empty

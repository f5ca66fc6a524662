"""Prompts with their responses as padded batches, and the forward pass that keeps response positions only."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sera_core.errors import ModelError
from sera_core.records import Ids


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """One prompt, int32 [p] with p >= 1, and one or more responses to it, int32 [r] with r >= 1 each."""

    prompt: Ids
    responses: tuple[Ids, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Prompt and one response in one sequence, int64 [start + length]."""

    ids: Tensor
    start: int

    @property
    def length(self) -> int:
        """Response tokens."""
        return len(self.ids) - self.start


@dataclass(frozen=True, slots=True, eq=False)
class Padded:
    """b right-padded rows of L tokens with T response tokens in all, on one device.

    `ids` int64 [b, L]; `mask` and `positions` int64 [b, L]; `places` int64 [T] are the flat positions whose logits
    predict a response token, `targets` int64 [T] those tokens; `inside` bool [b, R] says which of each row's R response
    slots are taken, row by row in the order of `places`.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    places: Tensor
    targets: Tensor
    inside: Tensor

    def row_sums(self, token_values: Tensor) -> Tensor:
        """Sums [b] over each row's response tokens of values [T]."""
        empty = torch.zeros(self.inside.shape, dtype=token_values.dtype, device=token_values.device)
        return empty.masked_scatter(self.inside, token_values).sum(1)

    def arguments(self, model: PreTrainedModel) -> dict[str, Any]:
        """What `model` takes for these rows."""
        given: dict[str, Any] = {"input_ids": self.ids, "attention_mask": self.mask, "use_cache": False}
        if "position_ids" in inspect.signature(model.forward).parameters:
            given["position_ids"] = self.positions
        return given


def rows_of(groups: Sequence[Group], vocabulary: int) -> list[Row]:
    """One row per response, flat over groups.

    Raises:
        ModelError: an empty prompt or response, or an id outside the vocabulary.
    """
    rows: list[Row] = []
    for number, group in enumerate(groups):
        if len(group.prompt) == 0:
            raise ModelError(
                f"Group {number} has an empty prompt. The first response token needs at least one token before it; "
                "give a prompt, or a tokenizer that has a BOS token."
            )
        for response in group.responses:
            index = len(rows)
            if len(response) == 0:
                raise ModelError(f"Response {index} is empty: it has no log-probability. Drop it before scoring.")
            ids = np.concatenate((group.prompt, response)).astype(np.int64)
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= vocabulary:
                raise ModelError(
                    f"Response {index} or its prompt has token id {low if low < 0 else high}; the model knows ids 0 "
                    f"to {vocabulary - 1}. Tokenise with the tokenizer of this model."
                )
            rows.append(Row(torch.from_numpy(ids), len(group.prompt)))
    return rows


def cut(lengths: Sequence[int], token_budget: int | None) -> list[list[int]]:
    """Row numbers by batch of at most `token_budget` tokens, padding included; a longer row goes alone.

    Longest first, so that a batch too big for the memory fails at once.
    """
    if token_budget is None:
        return [list(range(len(lengths)))]
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= token_budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def pad(rows: Sequence[Row], device: torch.device) -> Padded:
    """One right-padded batch of `rows`."""
    ids = torch.nn.utils.rnn.pad_sequence([row.ids for row in rows], batch_first=True)
    positions = torch.arange(ids.shape[1])
    ends = torch.tensor([len(row.ids) for row in rows])[:, None]
    starts = torch.tensor([row.start for row in rows])[:, None]
    # Logits at position t predict token t + 1.
    predicts = (positions + 1 >= starts) & (positions + 1 < ends)
    lengths = torch.tensor([row.length for row in rows])
    return Padded(
        ids=ids.to(device),
        mask=(positions < ends).long().to(device),
        positions=positions.expand_as(ids).to(device),
        places=predicts.flatten().nonzero().squeeze(1).to(device),
        targets=ids[:, 1:][predicts[:, :-1]].to(device),
        inside=(torch.arange(int(lengths.max())) < lengths[:, None]).to(device),
    )


@contextmanager
def head_at(model: PreTrainedModel, places: Tensor) -> Iterator[None]:
    """Let the output embedding see hidden states [1, T, H] at T flat `places` instead of all [B, L, H].

    Hooking the head rather than calling it keeps whatever a family does to its logits afterwards.
    """
    inner: Any = model
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if not isinstance(head, nn.Module):
        raise ModelError(
            f"{type(model).__name__} has no output embedding, so it gives no token log-probabilities. "
            "Use a causal language model."
        )

    def gather(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = inputs[0]
        return (hidden.reshape(-1, hidden.shape[-1])[places][None], *inputs[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside PEFT and data-parallel wrappers."""
    inner: Any = model
    while isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = inner.module
    return cast("PreTrainedModel", inner.get_base_model() if hasattr(inner, "get_base_model") else inner)

"""Log-probabilities of responses: the only scoring forward passes in the project."""

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

_CPU_TOKENS, _GPU_TOKENS = 1024, 16384


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """One prompt, int32 [p] with p >= 1, and one or more responses to it, int32 [r] with r >= 1 each."""

    prompt: Ids
    responses: tuple[Ids, ...]


@dataclass(frozen=True, slots=True, eq=False)
class GroupLogps:
    """Results for R responses, flat over groups in input order.

    `sums` float32 [R]: natural-log sums over response tokens. `lengths` int64 [R]: response tokens.
    `forwarded_tokens` counts what went through the model, padding included; `useful_tokens` leaves padding out.
    """

    sums: Tensor
    lengths: Tensor
    forwarded_tokens: int = 0
    useful_tokens: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """Prompt and one response in one sequence, int64 [start + length]."""

    ids: Tensor
    start: int

    @property
    def length(self) -> int:
        return len(self.ids) - self.start


def group_logps(model: nn.Module, groups: Sequence[Group], *, token_budget: int | None = None) -> GroupLogps:
    """Sum of log p(response token | everything before it) for every response of every group.

    Carries a gradient where torch has gradients enabled. The mode (train or eval) is the caller's. Results do not
    depend, beyond rounding, on the order of groups, on batching or on padding; token logits become log-probabilities
    in float32 whatever the model's dtype. Without `token_budget` there is one padded batch; with it, rows are
    sorted by length and cut into batches of at most `token_budget` tokens, padding included (a longer row goes
    alone).

    This is the padded engine. A packed one that shares prompts may replace it behind this same signature.

    Raises:
        ModelError: an empty prompt or response, an id outside the vocabulary, a model without an output embedding,
            or a sum that is not finite.
    """
    rows = _rows(groups, _unwrap(model).config.get_text_config().vocab_size)
    device = next(model.parameters()).device
    if not rows:
        return GroupLogps(torch.zeros(0, device=device), torch.zeros(0, dtype=torch.int64, device=device))
    batches = _batches([len(row.ids) for row in rows], token_budget)
    sums = torch.cat([_forward(model, [rows[i] for i in batch], device) for batch in batches])
    order = torch.tensor([i for batch in batches for i in batch], device=device)
    sums = sums[torch.argsort(order)]
    _check_finite(sums)
    return GroupLogps(
        sums=sums,
        lengths=torch.tensor([row.length for row in rows], device=device),
        forwarded_tokens=sum(len(batch) * max(len(rows[i].ids) for i in batch) for batch in batches),
        useful_tokens=sum(len(row.ids) for row in rows),
    )


def default_budget(device: torch.device) -> int:
    """Padded tokens per forward where the user names none: on a CPU padding costs more than a larger batch gains."""
    return _CPU_TOKENS if device.type == "cpu" else _GPU_TOKENS


def _rows(groups: Sequence[Group], vocabulary: int) -> list[_Row]:
    rows: list[_Row] = []
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
            rows.append(_Row(torch.from_numpy(ids), len(group.prompt)))
    return rows


def _batches(lengths: Sequence[int], token_budget: int | None) -> list[list[int]]:
    """Row numbers by batch. Longest first, so that a batch too big for the memory fails at once."""
    if token_budget is None:
        return [list(range(len(lengths)))]
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= token_budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _forward(model: nn.Module, rows: Sequence[_Row], device: torch.device) -> Tensor:
    """Sums [b] of one right-padded batch of b rows."""
    inner = _unwrap(model)
    width = max(len(row.ids) for row in rows)
    ids = torch.nn.utils.rnn.pad_sequence([row.ids for row in rows], batch_first=True)
    positions = torch.arange(width)
    ends = torch.tensor([len(row.ids) for row in rows])[:, None]
    starts = torch.tensor([row.start for row in rows])[:, None]
    # Logits at position t predict token t + 1.
    predicts = (positions + 1 >= starts) & (positions + 1 < ends)
    arguments: dict[str, Any] = {"attention_mask": (positions < ends).long().to(device), "use_cache": False}
    if "position_ids" in inspect.signature(inner.forward).parameters:
        arguments["position_ids"] = positions.expand_as(ids).to(device)
    with _head_at(inner, predicts.flatten().nonzero().squeeze(1).to(device)):
        logits: Tensor = model(input_ids=ids.to(device), **arguments).logits.squeeze(0).float()
    targets = ids[:, 1:][predicts[:, :-1]].to(device)
    token_logps = logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(1)
    lengths = torch.tensor([row.length for row in rows])
    inside = (torch.arange(int(lengths.max())) < lengths[:, None]).to(device)
    return torch.zeros(inside.shape, device=device).masked_scatter(inside, token_logps).sum(1)


@contextmanager
def _head_at(model: PreTrainedModel, positions: Tensor) -> Iterator[None]:
    """Let the output embedding see hidden states [1, T, H] at T flat `positions` instead of all [B, L, H].

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
        return (hidden.reshape(-1, hidden.shape[-1])[positions][None], *inputs[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


def _unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside PEFT and data-parallel wrappers."""
    inner: Any = model
    while isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = inner.module
    return cast("PreTrainedModel", inner.get_base_model() if hasattr(inner, "get_base_model") else inner)


def _check_finite(sums: Tensor) -> None:
    finite = torch.isfinite(sums.detach())
    if not bool(finite.all()):
        index = int((~finite).nonzero()[0])
        raise ModelError(
            f"The log-probability of response {index} is {float(sums.detach()[index])}. The model's weights or logits "
            "overflow; check the checkpoint, or use dtype float32."
        )

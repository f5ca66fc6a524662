"""Responses as rows of padded batches, each with its own copy of the prompt: right for every causal language model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sera_core.models.batches import Batch, Group, ids_tensor


def padded_batches(groups: Sequence[Group], token_budget: int | None, device: torch.device) -> list[Batch]:
    """Right-padded batches of at most `token_budget` tokens, padding included; one batch where it is None.

    Rows are sorted by length, longest first, so that a batch too big for the memory fails at once. A row longer than
    the budget goes alone.
    """
    rows = [(group.prompt, response) for group in groups for response in group.responses]
    lengths = [len(prompt) + len(response) for prompt, response in rows]
    ids = [ids_tensor(row) for row in rows]
    starts = [len(prompt) for prompt, _ in rows]
    return [
        _batch([ids[i] for i in numbers], [starts[i] for i in numbers], tuple(numbers), device)
        for numbers in cut(lengths, token_budget)
    ]


def cut(lengths: Sequence[int], token_budget: int | None) -> list[list[int]]:
    """Row numbers by batch; see `padded_batches`."""
    if token_budget is None:
        return [list(range(len(lengths)))] if lengths else []
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= token_budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _batch(rows: list[Tensor], prompts: list[int], responses: tuple[int, ...], device: torch.device) -> Batch:
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    positions = torch.arange(ids.shape[1])
    ends = torch.tensor([len(row) for row in rows])[:, None]
    starts = torch.tensor(prompts)[:, None]
    # Logits at position t predict token t + 1.
    predicts = (positions + 1 >= starts) & (positions + 1 < ends)
    lengths = tuple(len(row) - prompt for row, prompt in zip(rows, prompts, strict=True))
    return Batch(
        ids=ids.to(device),
        mask=(positions < ends).long().to(device),
        layout=None,
        positions=None,
        places=predicts.flatten().nonzero().squeeze(1).to(device),
        targets=ids[:, 1:][predicts[:, :-1]].to(device),
        responses=responses,
        lengths=lengths,
        useful=sum(len(row) for row in rows),
    )

"""Responses as rows of padded batches, each with its own copy of the prompt: right for every causal language model.

The last token of a response predicts nothing, so it is no part of its row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sera_core.models.batches import Batch, Group, ids_tensor
from sera_core.records import Ids


def padded_batches(
    groups: Sequence[Group], token_budget: int | None, device: torch.device, *, whole: bool = False
) -> list[Batch]:
    """Right-padded batches of at most `token_budget` tokens, padding included; one batch where it is None.

    Rows are sorted by length, longest first, so that a batch too big for the memory fails at once. A row longer than
    the budget goes alone. `whole` rows have their last token too, for models to which the length itself matters.
    """
    rows = [_Row(group.prompt, response, whole) for group in groups for response in group.responses]
    return [
        _batch([rows[i] for i in numbers], tuple(numbers), device)
        for numbers in cut([len(row.ids) for row in rows], token_budget)
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


class _Row:
    """The `ids` of a row, the length of its `prompt`, and its `targets`."""

    def __init__(self, prompt: Ids, response: Ids, whole: bool) -> None:
        self.targets = ids_tensor([response])
        self.ids = ids_tensor([prompt, response if whole else response[:-1]])
        self.prompt = len(prompt)


def _batch(rows: Sequence[_Row], responses: tuple[int, ...], device: torch.device) -> Batch:
    ids = torch.nn.utils.rnn.pad_sequence([row.ids for row in rows], batch_first=True)
    positions = torch.arange(ids.shape[1])
    lengths = tuple(len(row.targets) for row in rows)
    # Logits at position t predict token t + 1.
    firsts = torch.tensor([row.prompt - 1 for row in rows])[:, None]
    predicts = (positions >= firsts) & (positions < firsts + torch.tensor(lengths)[:, None])
    ends = torch.tensor([len(row.ids) for row in rows])
    return Batch(
        ids=ids.to(device),
        mask=(positions < ends[:, None]).long().to(device),
        layout=None,
        positions=None,
        places=predicts.flatten().nonzero().squeeze(1).to(device),
        targets=torch.cat([row.targets for row in rows]).to(device),
        responses=responses,
        lengths=lengths,
        useful=int(ends.sum()),
    )

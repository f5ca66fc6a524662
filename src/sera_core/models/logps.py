"""Log-probabilities of responses: the only scoring forward passes in the project."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sera_core.errors import ModelError
from sera_core.models.padded import Group, Row, cut, head_at, pad, rows_of, unwrap

__all__ = ["Group", "GroupLogps", "default_budget", "group_logps"]

_CPU_TOKENS, _GPU_TOKENS = 1024, 16384


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
    rows = rows_of(groups, unwrap(model).config.get_text_config().vocab_size)
    device = next(model.parameters()).device
    if not rows:
        return GroupLogps(torch.zeros(0, device=device), torch.zeros(0, dtype=torch.int64, device=device))
    batches = cut([len(row.ids) for row in rows], token_budget)
    sums = torch.cat([_forward(model, [rows[i] for i in batch], device) for batch in batches])
    order = torch.tensor([i for batch in batches for i in batch], device=device)
    sums = sums[torch.argsort(order)]
    check_sums(sums)
    return GroupLogps(
        sums=sums,
        lengths=torch.tensor([row.length for row in rows], device=device),
        forwarded_tokens=sum(len(batch) * max(len(rows[i].ids) for i in batch) for batch in batches),
        useful_tokens=sum(len(row.ids) for row in rows),
    )


def default_budget(device: torch.device) -> int:
    """Padded tokens per forward where the user names none: on a CPU padding costs more than a larger batch gains."""
    return _CPU_TOKENS if device.type == "cpu" else _GPU_TOKENS


def _forward(model: nn.Module, rows: Sequence[Row], device: torch.device) -> Tensor:
    """Sums [b] of one right-padded batch of b rows."""
    inner, batch = unwrap(model), pad(rows, device)
    with head_at(inner, batch.places):
        logits: Tensor = model(**batch.arguments(inner)).logits.squeeze(0).float()
    return batch.row_sums(logits.gather(1, batch.targets[:, None]).squeeze(1) - logits.logsumexp(1))


def check_sums(sums: Tensor) -> None:
    """Raise ModelError naming the first response whose sum is not finite."""
    finite = torch.isfinite(sums.detach())
    if not bool(finite.all()):
        index = int((~finite).nonzero()[0])
        raise ModelError(
            f"The log-probability of response {index} is {float(sums.detach()[index])}. The model's weights or logits "
            "overflow; check the checkpoint, or use dtype float32."
        )

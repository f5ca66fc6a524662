"""Log-probabilities of responses: the only scoring forward passes in the project."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sera_core.errors import ModelError
from sera_core.models.batches import Group, check_groups, response_sums, unwrap
from sera_core.models.engine import engine_of, forget_lengths
from sera_core.models.head import Head
from sera_core.models.products import fast_products

__all__ = ["Group", "GroupLogps", "default_budget", "group_logps"]

_CPU_TOKENS, _GPU_TOKENS = 2048, 16384


@dataclass(frozen=True, slots=True, eq=False)
class GroupLogps:
    """Results for R responses, flat over groups in input order.

    `sums` float32 [R]: natural-log sums over response tokens. `lengths` int64 [R]: response tokens.
    `forwarded_tokens` counts what went through the model, padding included; `useful_tokens` leaves padding out.
    `attention` names what they went through.
    """

    sums: Tensor
    lengths: Tensor
    forwarded_tokens: int = 0
    useful_tokens: int = 0
    attention: str = ""


def group_logps(model: nn.Module, groups: Sequence[Group], *, token_budget: int | None = None) -> GroupLogps:
    """Sum of log p(response token | everything before it) for every response of every group.

    Carries a gradient where torch has gradients enabled. The mode (train or eval) is the caller's. Results do not
    depend, beyond rounding, on the order of groups or on batching; token logits become log-probabilities in float32
    whatever the model's dtype, some positions and words at a time.

    Prompts are computed once for all their responses and no token is padding, where that is exact for the model's
    family; elsewhere every response is a padded row with its prompt (see `engine_of`). Without `token_budget` there is
    one batch; with it, batches of at most that many tokens, padding included (what is longer goes alone).

    Raises:
        ModelError: an empty prompt or response, an id outside the vocabulary, a model without an output embedding,
            or a sum that is not finite.
    """
    check_groups(groups, unwrap(model).config.get_text_config().vocab_size)
    device = next(model.parameters()).device
    lengths = torch.tensor([len(ids) for group in groups for ids in group.responses], dtype=torch.int64, device=device)
    if not len(lengths):
        return GroupLogps(torch.zeros(0, device=device), lengths)
    engine = engine_of(model)
    forget_lengths(model)
    batches = engine.batches(groups, token_budget, device)
    with fast_products(model):
        heads = [Head(model, batch, plain=engine.plain) for batch in batches]
        # One pass through the head for all batches: its weight gradient is as large as the vocabulary.
        states, targets = torch.cat([head.states for head in heads]), torch.cat([batch.targets for batch in batches])
        sums = response_sums(batches, heads[0].token_logps(states, targets))
    check_sums(sums)
    return GroupLogps(
        sums=sums,
        lengths=lengths,
        forwarded_tokens=sum(batch.ids.numel() for batch in batches),
        useful_tokens=sum(batch.useful for batch in batches),
        attention=engine.label,
    )


def default_budget(device: torch.device) -> int:
    """Tokens per forward, padding included, where the user names none: enough to keep the device busy."""
    return _CPU_TOKENS if device.type == "cpu" else _GPU_TOKENS


def check_sums(sums: Tensor) -> None:
    """Raise ModelError naming the first response whose sum is not finite."""
    finite = torch.isfinite(sums.detach())
    if not bool(finite.all()):
        index = int((~finite).nonzero()[0])
        raise ModelError(
            f"The log-probability of response {index} is {float(sums.detach()[index])}. The model's weights or logits "
            "overflow; check the checkpoint, or use dtype float32."
        )

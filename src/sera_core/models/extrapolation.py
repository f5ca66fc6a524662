"""Log-probabilities under a policy extrapolated away from its reference, token logits mixed chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from sera_core.errors import ModelError
from sera_core.models.batches import Batch, Group, check_groups, response_sums, unwrap
from sera_core.models.engine import common, engine_of, forget_lengths
from sera_core.models.head import Head, chunk_size, target_logps
from sera_core.models.logps import GroupLogps, check_sums
from sera_core.models.products import fast_products


@torch.no_grad()
def extrapolated_logps(
    policy: nn.Module,
    reference: Callable[[], AbstractContextManager[nn.Module]],
    groups: Sequence[Group],
    strength: float,
    *,
    token_budget: int | None = None,
) -> GroupLogps:
    """Summed log-probs of R responses, flat over groups, no gradient; the token counts are those of both models.

    The distribution of each token is softmax((1 + strength) l - strength l_ref), l the token logits of the policy and
    l_ref those of the model that `reference` enters, mixed in float32 and normalised after mixing. Batches are those of
    `group_logps` for the policy; token logits of a chunk of response positions exist at a time.

    Raises:
        ModelError: see `group_logps`, or the two models differ in their vocabulary.

    Source: Kim et al. 2024 (SPA), Eq. 11.
    """
    vocabulary = int(unwrap(policy).config.get_text_config().vocab_size)
    check_groups(groups, vocabulary)
    device = next(policy.parameters()).device
    if not groups:
        return GroupLogps(torch.zeros(0, device=device), torch.zeros(0, dtype=torch.int64, device=device))
    forget_lengths(policy)
    with reference() as model:
        forget_lengths(model)
        engines = engine_of(policy), engine_of(model)
    # Both models read the same batches, in the way that is exact for both.
    engine = common(*engines)
    batches = engine.batches(groups, token_budget, device)
    with fast_products(policy):
        parts = [_batch(policy, reference, batch, strength, chunk_size(vocabulary)) for batch in batches]
    sums = response_sums(batches, torch.cat(parts))
    check_sums(sums)
    return GroupLogps(
        sums=sums,
        lengths=torch.tensor([len(ids) for group in groups for ids in group.responses], device=device),
        forwarded_tokens=2 * sum(batch.ids.numel() for batch in batches),
        useful_tokens=2 * sum(batch.useful for batch in batches),
        attention=engine.label,
    )


def _batch(
    policy: nn.Module,
    reference: Callable[[], AbstractContextManager[nn.Module]],
    batch: Batch,
    strength: float,
    size: int,
) -> Tensor:
    """Log-probs [T] of one batch's response tokens."""
    own = Head(policy, batch, plain=engine_of(policy).plain)
    with reference() as model:
        other = Head(model, batch, plain=engine_of(model).plain)
    found = []
    parts = (torch.split(tensor, size) for tensor in (own.states, other.states, batch.targets))
    for states, far_states, targets in zip(*parts, strict=True):
        logits = own.logits(states)
        with reference():
            far = other.logits(far_states)
        if far.shape != logits.shape:
            raise ModelError(
                f"Policy and reference have {logits.shape[1]} and {far.shape[1]} token logits; their mixture does not "
                "exist. Use a reference with the policy's vocabulary."
            )
        mixed = logits.mul_(1 + strength).sub_(far, alpha=strength)  # Kim et al. 2024, Eq. 11
        found.append(target_logps(mixed, targets))
    return torch.cat(found)

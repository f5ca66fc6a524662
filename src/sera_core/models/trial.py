"""A small trial of a model: whether packs, padding and its head do what they should, before anything relies on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sera_core.models.batches import Batch, Group, response_sums
from sera_core.models.capped import score_cap
from sera_core.models.head import Head
from sera_core.models.packed import WORTH_SHARING, packed_batches
from sera_core.models.padded import padded_batches

NOT_FINITE = "its log-probabilities are not finite"
_FULL, _SLIDING = "full_attention", "sliding_attention"


def trial_groups(model: PreTrainedModel) -> list[Group]:
    """Two small groups of several responses whose prompts begin alike, ids spread over the vocabulary."""
    rng = np.random.default_rng(0)
    vocabulary = int(model.config.get_text_config().vocab_size)

    def ids(count: int) -> np.ndarray[Any, np.dtype[np.int32]]:
        return rng.integers(0, vocabulary, count).astype(np.int32)

    opening = ids(WORTH_SHARING)
    return [
        Group(np.concatenate([opening, ids(p)]), tuple(ids(r) for r in lengths))
        for p, lengths in ((4, (3, 5)), (3, (6, 2, 4)))
    ]


def obstacle(model: PreTrainedModel, positions: bool) -> str:
    """Why packs are out of the question, empty where they may do. `positions`: whether the family can be told them."""
    config: Any = model.config.get_text_config()
    attention = model.config._attn_implementation  # transformers has no public name for it
    capped = score_cap(config) is not None
    if attention != ("eager" if capped else "sdpa"):
        lost = ", which leaves out the cap on its scores" if capped and attention == "sdpa" else ""
        return f"its attention is {attention}{lost}"
    if not model._can_set_attn_implementation():  # no public name either
        return "its attention cannot be replaced"
    if not positions:
        return "it cannot be told the positions of its tokens"
    other = sorted(set(getattr(config, "layer_types", None) or ()) - {_FULL, _SLIDING})
    return f"it has layers of type {', '.join(other)}" if other else ""


def padding_matters(model: PreTrainedModel, groups: Sequence[Group], plain: bool) -> bool:
    """Whether a response gets other log-probs beside longer ones than alone."""
    together, alone = (_padded_logps(model, groups, plain, budget) for budget in (None, 1))
    return not _close(model, together, alone, lambda: torch.zeros_like(alone))


def disagreement(model: PreTrainedModel, groups: Sequence[Group], plain: bool) -> str:
    """How packed results differ from padded ones on a trial, empty where they agree."""
    packs, others = (packed_batches(some, None, model.device) for some in (groups, _with_another_first(groups)))
    try:
        found, beside = (trial_logps(model, batches, plain) for batches in (packs, others))
    except Exception as error:  # noqa: BLE001  # a family's own code may raise anything; then it is not for packs
        told = str(error).splitlines() or [type(error).__name__]
        return f"packed attention does not work for it ({told[0][:120]})"
    if not bool(torch.isfinite(found).all()):
        return NOT_FINITE
    if not torch.allclose(found[1:], beside[1:], rtol=1e-5 if model.dtype is torch.float32 else 1e-3):
        return "its layers do not keep the responses of a pack apart"
    alone = _padded_logps(model, groups, plain, 1)
    if not _close(model, found, alone, lambda: _padded_logps(model, groups, plain, None) - alone):
        return "its packed results differ from those of single responses"
    return _misread(model, packs[0])


def trial_logps(model: PreTrainedModel, batches: Sequence[Batch], plain: bool) -> Tensor:
    """Summed log-probs [n] of a trial."""
    heads = [Head(model, batch, plain=plain) for batch in batches]
    found = [head.token_logps(head.states, batch.targets) for head, batch in zip(heads, batches, strict=True)]
    return response_sums(batches, torch.cat(found))


def _padded_logps(model: PreTrainedModel, groups: Sequence[Group], plain: bool, token_budget: int | None) -> Tensor:
    batches = padded_batches(groups, token_budget, model.device, whole=token_budget == 1)
    return trial_logps(model, batches, plain)


@contextmanager
def steady(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout, gradient and autocast; modes come back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    nn.Module.train(model, mode=False)
    try:
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        for module, training in modes:
            module.training = training


def _close(model: PreTrainedModel, found: Tensor, expected: Tensor, noise: Callable[[], Tensor]) -> bool:
    """Equal up to rounding; in half precision up to a few times the `noise` that other batches make, or 1 %."""
    if model.dtype is torch.float32:
        return torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    allowed = torch.maximum(4 * noise().abs().max(), 0.01 * expected.abs())
    return bool(((found - expected).abs() <= allowed).all())


def _misread(model: PreTrainedModel, pack: Batch) -> str:
    """Which layers did not ask for what their configuration says; a window wider than the trial shows only there."""
    config: Any = model.config.get_text_config()
    asked = Counter() if pack.layout is None else pack.layout.asked
    if asked.total() != config.num_hidden_layers:
        return f"{asked.total()} of its {config.num_hidden_layers} layers use replaceable attention"
    types = getattr(config, "layer_types", None)
    everywhere = asked.total() if getattr(config, "sliding_window", None) is not None else 0
    sliding = list(types).count(_SLIDING) if types else everywhere
    if asked.total() - asked[None] != sliding:
        return f"{asked.total() - asked[None]} of its layers asked for a sliding window, {sliding} have one"
    return ""


def _with_another_first(groups: Sequence[Group]) -> list[Group]:
    """The same groups with other ids in their first response."""
    first = groups[0]
    changed = (first.responses[0][::-1] // 2, *first.responses[1:])
    return [Group(first.prompt, changed), *groups[1:]]

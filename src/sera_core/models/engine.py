"""How a model's batches are made: packed where that is exact for its family, padded otherwise."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sera_core.errors import ModelError
from sera_core.models.attention import PACKED, register
from sera_core.models.batches import Batch, Group, response_sums, unwrap
from sera_core.models.flex import FLEX, register_flex
from sera_core.models.head import Head, is_plain
from sera_core.models.packed import packed_batches
from sera_core.models.padded import padded_batches

_LOG = logging.getLogger(__name__)
_FULL, _SLIDING = "full_attention", "sliding_attention"
# Where the engine of a model is remembered on the model itself.
_KEPT = "_sera_engine"
# Attention for packs, with what makes it known to transformers.
PACKINGS: Mapping[str, Callable[[], None]] = {PACKED: register, FLEX: register_flex}


@dataclass(frozen=True, slots=True)
class Engine:
    """Whether batches of a model are `packed`, the name of its `attention`, and whether its head is `plain`.

    `reason` says in words why batches are padded, empty where they are packed.
    """

    packed: bool
    attention: str
    plain: bool
    reason: str = ""

    def batches(self, groups: Sequence[Group], token_budget: int | None, device: torch.device) -> list[Batch]:
        """Batches of at most `token_budget` tokens that hold all responses of `groups`."""
        make = packed_batches if self.packed else padded_batches
        return make(groups, token_budget, device)


def engine_of(model: nn.Module) -> Engine:
    """The engine of a model, found out on first use and kept with it.

    Packs are used where transformers' attention interface lets tokens of a pack be told apart and a small trial agrees
    with padded batches. The model's attention is switched then; calls from elsewhere get its SDPA attention as before.
    """
    inner = unwrap(model)
    known: Engine | None = vars(inner).get(_KEPT)
    if known is None:
        known = _find(inner, [FLEX, PACKED] if inner.device.type == "cuda" else [PACKED])
        vars(inner)[_KEPT] = known
        if known.reason:
            _LOG.info("%s is scored in padded batches: %s.", type(inner).__name__, known.reason)
    return known


def choose_attention(model: PreTrainedModel, attention: str) -> None:
    """Settle the engine of `model` as the user asked: packs with that attention, or padded batches with another's.

    Raises:
        ModelError: packs are asked for and are not exact for this model.
    """
    if attention in PACKINGS:
        found = _find(model, [attention])
        if found.reason:
            raise ModelError(
                f"attn_implementation is {attention}, but {type(model).__name__} cannot be scored in packs: "
                f"{found.reason}. Leave it out, and Sera picks what is exact."
            )
    else:
        with _steady(model):
            plain = is_plain(model, padded_batches(_trial(model)[:1], None, model.device)[0])
        found = Engine(False, attention, plain, f"attn_implementation is {attention}")
    vars(model)[_KEPT] = found


def own_attention(attention: str | None) -> str | None:
    """What transformers is told of a user's choice: a name of its own, None where packs replace its attention."""
    return None if attention in PACKINGS else attention


def _find(model: PreTrainedModel, packings: Sequence[str]) -> Engine:
    """The first of `packings` that is exact, else padded batches."""
    groups = _trial(model)
    padded = padded_batches(groups, None, model.device)
    attention = str(model.config._attn_implementation)  # transformers has no public name for it
    with _steady(model):
        plain = is_plain(model, padded[0])
        reason = _obstacle(model)
        for name in () if reason else packings:
            PACKINGS[name]()
            model.set_attn_implementation(name)
            reason = _disagreement(model, groups, padded, plain)
            if not reason:
                return Engine(True, name, plain)
            model.set_attn_implementation(attention)
    return Engine(False, attention, plain, reason)


def _obstacle(model: PreTrainedModel) -> str:
    """Why packs are out of the question, empty where they may do."""
    config: Any = model.config.get_text_config()
    if model.config._attn_implementation != "sdpa":  # no public name either
        return f"its attention is {model.config._attn_implementation}"
    if not model._can_set_attn_implementation():  # transformers has no public name for it
        return "its attention cannot be replaced"
    other = sorted(set(getattr(config, "layer_types", None) or ()) - {_FULL, _SLIDING})
    return f"it has layers of type {', '.join(other)}" if other else ""


def _disagreement(model: PreTrainedModel, groups: Sequence[Group], padded: Sequence[Batch], plain: bool) -> str:
    """How packed results differ from padded ones on a trial, empty where they agree."""
    packs, others = (packed_batches(some, None, model.device) for some in (groups, _with_another_first(groups)))
    try:
        found, beside = (_logps(model, batches, plain) for batches in (packs, others))
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        return f"packed attention does not work for it ({str(error).splitlines()[0][:120]})"
    loose = model.dtype is not torch.float32
    if not torch.allclose(found[1:], beside[1:], rtol=1e-3 if loose else 1e-5):
        return "its layers do not keep the responses of a pack apart"
    if not torch.allclose(found, _logps(model, padded, plain), rtol=5e-2 if loose else 1e-4, atol=1e-4):
        return "its packed results differ from padded ones"
    return _misread(model, packs[0])


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


def _logps(model: PreTrainedModel, batches: Sequence[Batch], plain: bool) -> Tensor:
    """Summed log-probs [n] of a trial."""
    values = [Head(model, batch, plain=plain) for batch in batches]
    found = [head.token_logps(head.states, batch.targets) for head, batch in zip(values, batches, strict=True)]
    return response_sums(batches, torch.cat(found))


def _trial(model: PreTrainedModel) -> list[Group]:
    """Two small groups of several responses, ids spread over the vocabulary."""
    rng = np.random.default_rng(0)
    vocabulary = int(model.config.get_text_config().vocab_size)

    def ids(count: int) -> np.ndarray[Any, np.dtype[np.int32]]:
        return rng.integers(0, vocabulary, count).astype(np.int32)

    return [Group(ids(p), tuple(ids(r) for r in lengths)) for p, lengths in ((4, (3, 5)), (3, (6, 2, 4)))]


@contextmanager
def _steady(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout, gradient and autocast; modes come back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(mode=False)
    try:
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        for module, training in modes:
            module.training = training

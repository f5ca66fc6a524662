"""How a model's batches are made: packed where that is exact for its family, padded otherwise."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from sera_core.errors import ModelError
from sera_core.models.attention import PACKED, packed_attention
from sera_core.models.batches import Batch, Group, unwrap
from sera_core.models.flex import FLEX, flex_attention
from sera_core.models.head import is_plain
from sera_core.models.packed import packed_batches
from sera_core.models.padded import padded_batches
from sera_core.models.trial import NOT_FINITE, disagreement, obstacle, padding_matters, steady, trial_groups

_LOG = logging.getLogger(__name__)
# Where the engine of a model is remembered on the model itself.
_KEPT = "_sera_engine"
# Attention for packs, by the name that transformers gets to know it by.
PACKINGS: Mapping[str, Callable[..., Any]] = {PACKED: packed_attention, FLEX: flex_attention}


@dataclass(frozen=True, slots=True)
class Engine:
    """How a model is scored.

    Batches are `packed`, or padded; where not even padding is exact (`alone`) every response is a batch. `attention` is
    its name, `plain` says that the head is a matrix product, `reason` why batches are not packed, empty where they are.
    Rotary embeddings that stretch with the longest sequence of a batch have responses of more than `stretch` tokens,
    prompt included, computed alone.
    """

    packed: bool
    attention: str
    plain: bool
    reason: str = ""
    alone: bool = False
    stretch: int | None = None

    @property
    def label(self) -> str:
        """What is recorded of it."""
        return self.attention if self.packed else f"{self.attention}, padded: {self.reason}"

    def batches(self, groups: Sequence[Group], token_budget: int | None, device: torch.device) -> list[Batch]:
        """Batches of at most `token_budget` tokens that hold all responses of `groups`."""
        if self.alone:
            return padded_batches(groups, 1, device, whole=True)
        make = packed_batches if self.packed else padded_batches
        if self.stretch is None:
            return make(groups, token_budget, device)
        short, long = _divided(groups, self.stretch)
        found = _numbered(make(short[0], token_budget, device), short[1])
        # From short to long: transformers' dynamic embeddings stay as the longest sequence so far has left them, which
        # `forget_lengths` undoes.
        return found + _numbered(padded_batches(long[0], 1, device, whole=True), long[1])[::-1]


def engine_of(model: nn.Module) -> Engine:
    """The engine of a model, found out on first use and kept with it.

    Packs are used where transformers' attention interface lets tokens of a pack be told apart and a small trial agrees
    with single responses. The model's attention is switched then; calls from elsewhere get its SDPA attention as
    before.
    """
    inner = unwrap(model)
    known: Engine | None = vars(inner).get(_KEPT)
    attention = inner.config._attn_implementation  # transformers has no public name for it
    if known is None or known.attention != attention:
        # Where somebody has switched the attention since, what they chose counts.
        known = _find(inner, [FLEX, PACKED] if inner.device.type == "cuda" else [PACKED])
        vars(inner)[_KEPT] = known
        # Of weights that are nan, the error that follows says more.
        if known.reason and known.reason != NOT_FINITE:
            _tell(f"{type(inner).__name__} is scored in padded batches: {known.reason}.")
    return known


@cache
def _tell(warning: str) -> None:
    """Warn once in this process, however many stages load such a model."""
    _LOG.warning("%s", warning)


def common(first: Engine, second: Engine) -> Engine:
    """How batches are made that two models read: in the way that is exact for both."""
    engine = min(first, second, key=lambda engine: engine.packed)
    limits = [each.stretch for each in (first, second) if each.stretch is not None]
    return replace(engine, alone=first.alone or second.alone, stretch=min(limits, default=None))


def forget_lengths(model: nn.Module) -> None:
    """Take dynamic rotary embeddings back to short sequences: earlier calls leave them as their longest row had them.

    To be called before the batches of an engine that stretches; other models are left alone.
    """
    if engine_of(model).stretch is not None:
        inner = unwrap(model)
        with steady(inner):
            inner(input_ids=torch.zeros((1, 1), dtype=torch.int64, device=inner.device), use_cache=False)


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
        found = replace(_find(model, []), reason=f"attn_implementation is {attention}")
    vars(model)[_KEPT] = found


def own_attention(attention: str | None) -> str | None:
    """What transformers is told of a user's choice: a name of its own, None where packs replace its attention."""
    return None if attention in PACKINGS else attention


def _find(model: PreTrainedModel, packings: Sequence[str]) -> Engine:
    """The first of `packings` that is exact, else padded batches."""
    groups = trial_groups(model)
    before = str(model.config._attn_implementation)  # no public name
    positions = "position_ids" in inspect.signature(model.forward).parameters
    with steady(model):
        plain = is_plain(model, padded_batches(groups, None, model.device)[0])
        stretch = _stretch(model)
        reason = obstacle(model, positions)
        for name in () if reason else packings:
            AttentionInterface.register(name, PACKINGS[name])
            AttentionMaskInterface.register(name, sdpa_mask)
            model.set_attn_implementation(name)
            reason = disagreement(model, groups, plain)
            if not reason:
                return Engine(True, name, plain, stretch=stretch)
            model.set_attn_implementation(before)
        return Engine(False, before, plain, reason, padding_matters(model, groups, plain), stretch)


def _stretch(model: PreTrainedModel) -> int | None:
    """From how many tokens on rotary embeddings depend on the longest sequence of a batch, None where they do not."""
    config: Any = model.config.get_text_config()
    rope: Any = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    layers = rope.values() if rope and all(isinstance(each, Mapping) for each in rope.values()) else [rope]
    if not any(each.get("rope_type") in {"dynamic", "longrope"} for each in layers):
        return None
    originals = [each.get("original_max_position_embeddings") for each in layers]
    known = [*originals, getattr(config, "original_max_position_embeddings", None), config.max_position_embeddings]
    return min(int(limit) for limit in known if limit)


Numbered = tuple[list[Group], list[int]]
"""Groups with the numbers their responses, flat over groups, have elsewhere."""


def _divided(groups: Sequence[Group], stretch: int) -> tuple[Numbered, Numbered]:
    """Responses of at most `stretch` tokens, prompt included, and longer ones."""
    parts: tuple[Numbered, Numbered] = ([], []), ([], [])
    number = 0
    for group in groups:
        sides: tuple[list[int], list[int]] = [], []
        for index, response in enumerate(group.responses):
            sides[len(group.prompt) + len(response) > stretch].append(index)
        for (kept, numbers), side in zip(parts, sides, strict=True):
            if side:
                kept.append(Group(group.prompt, tuple(group.responses[index] for index in side)))
                numbers += [number + index for index in side]
        number += len(group.responses)
    return parts


def _numbered(batches: Sequence[Batch], numbers: Sequence[int]) -> list[Batch]:
    return [replace(batch, responses=tuple(numbers[i] for i in batch.responses)) for batch in batches]

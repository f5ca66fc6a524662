"""Prompts under a prefix: the same question, asked with something in front of it inside the user's turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sera_core.data.encoding import Encoder, Messages
from sera_core.data.tokens import TokenLimits
from sera_core.errors import ConfigError, DataError
from sera_core.records import Ids, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACE = "{prompt}"


def prefixed_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], prefix: str, limits: TokenLimits
) -> tuple[Prompt, ...]:
    """The same prompts, id and source kept, with `prefix` inside the last user turn; ids int32 [p] are longer.

    A `prefix` without ``{prompt}`` stands before the turn's text, with a space between unless it ends in white space;
    one with ``{prompt}`` is a template for that text. Token limits hold for the prompt alone: one that was cut loses
    the same tokens here, and none of the prefix.

    Raises:
        ConfigError: the prefix is empty, holds ``{prompt}`` more than once, or spells a special token.
        DataError: a conversation without a user turn.
    """
    before, after = _halves(tokenizer, prefix)
    asked = {prompt.id: prompt for prompt in prompts}
    plain = [prompt.source.messages for prompt in asked.values()]
    longer = [_framed(messages, before, "", name) for messages, name in zip(plain, asked, strict=True)]
    longest = [_framed(messages, before, after, name) for messages, name in zip(plain, asked, strict=True)]
    encoder = Encoder(tokenizer)
    rows = (encoder.prompt_ids(each) for each in (plain, longer, longest))
    found: dict[str, Prompt] = {}
    for prompt, whole, front, both in zip(asked.values(), *rows, strict=True):
        ids = both
        if not np.array_equal(prompt.ids, whole):
            ids = _insert(_insert(prompt.ids, whole, front, limits), front, both, limits)
        found[prompt.id] = replace(prompt, ids=ids)
    return tuple(found[prompt.id] for prompt in prompts)


def _halves(tokenizer: PreTrainedTokenizerBase, prefix: str) -> tuple[str, str]:
    """What stands before and after the turn's text."""
    if not prefix.strip() or prefix.count(PLACE) > 1:
        raise ConfigError(
            f"The prompt prefix {prefix!r} is empty or holds {PLACE} more than once. Give a text to stand before the "
            f"prompt, or a template with one {PLACE}."
        )
    if found := Encoder(tokenizer).special.search(prefix):
        raise ConfigError(
            f"The prompt prefix spells the special token {found.group()!r}, which would end the user's turn or more. "
            "Write it without."
        )
    if PLACE in prefix:
        before, _, after = prefix.partition(PLACE)
        return before, after
    return (prefix if prefix[-1].isspace() else f"{prefix} "), ""


def _framed(messages: Messages, before: str, after: str, name: str) -> Messages:
    """The same prompt with its last user turn's text between `before` and `after`."""
    if isinstance(messages, str):
        return f"{before}{messages}{after}"
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=None)
    if last is None:
        raise DataError(f"Prompt {name!r} has no user turn that a prefix could stand in. Remove it or the prefix.")
    turn = messages[last]
    return (*messages[:last], replace(turn, content=f"{before}{turn.content}{after}"), *messages[last + 1 :])


def _insert(kept: Ids, whole: Ids, longer: Ids, limits: TokenLimits) -> Ids:
    """`kept`, which is `whole` cut, with what `longer` has more than `whole` at its place or, if cut, at the edge."""
    shared = min(whole.size, longer.size)
    same = whole[:shared] == longer[:shared]
    head = shared if same.all() else int(same.argmin())
    same = whole[whole.size - shared + head :][::-1] == longer[longer.size - shared + head :][::-1]
    tail = same.size if same.all() else int(same.argmin())
    if limits.prompt_side == "right":
        place = min(head, kept.size)
    else:
        # A BOS kept in front of the cut stays in front.
        place = max(kept.size - (whole.size - head), int(kept[0] == whole[0]))
    resume = min(place + whole.size - head - tail, kept.size)
    if limits.prompt_side == "left":
        resume = max(kept.size - tail, place)
    return np.concatenate([kept[:place], longer[head : longer.size - tail], kept[resume:]]).astype(np.int32)

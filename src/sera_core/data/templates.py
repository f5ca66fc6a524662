"""Chat templates: rendering conversations once, and learning from a probe how a template ends a turn.

A template's clock is fixed (`strftime_now` always answers for 26 July 2024), so that the same conversation renders
to the same text on every day.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from jinja2 import TemplateError

from sera_core.errors import ConfigError, DataError, ModelError
from sera_core.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUESTION = "probe question"
_ANSWER = "probe answer"
_NOW = datetime.datetime(2024, 7, 26, tzinfo=datetime.UTC)

Conversation = Sequence[Message]


@dataclass(frozen=True, slots=True)
class TurnFormat:
    """How one tokenizer's template frames the assistant's turn.

    `generation`: prompts are rendered with the generation prompt. `head` counts the characters the template puts
    between prompt and answer, `foot` the white space after the answer that is cut off. `stop_text` is the control
    token the template ends a turn with, None where it writes none; `stop_id` is that token, or the eos token.
    """

    generation: bool
    head: int
    foot: int
    stop_text: str | None
    stop_id: int


def chat_tokenizer(tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """`tokenizer` made ready for conversations: a pad token (eos where it had none) and, if given, another template.

    `chat_template` is inline Jinja or the path of a file that holds it.

    Raises:
        ModelError: it has no eos token.
        ConfigError: `chat_template` is neither Jinja nor an existing file.
    """
    if tokenizer.eos_token is None:
        raise ModelError(
            f"The tokenizer of '{tokenizer.name_or_path}' has no eos token, so answers cannot end. Set one and save it "
            "again."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if chat_template is not None:
        tokenizer.chat_template = _template_text(chat_template)
    return tokenizer


def _reason(error: Exception) -> str:
    """The first line of a library's message, without its full stop."""
    return str(error).strip().partition("\n")[0].rstrip(". ")


def _template_text(given: str) -> str:
    """Inline Jinja as it is; otherwise the content of the file named."""
    if "{" in given:
        return given
    path = Path(given)
    if not path.is_file():
        raise ConfigError(
            f"tokens.chat_template is '{given}', which is neither Jinja text (it has no braces) nor an existing file."
            " Give the template itself or the path of a .jinja file."
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"tokens.chat_template: {path} cannot be read as UTF-8 text: {error}.") from error


def render(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], generation: bool) -> list[str]:
    """The template's text for each conversation, with the generation prompt or without.

    Raises:
        DataError: there is no template, or it refuses one of the conversations.
    """
    if not tokenizer.chat_template:
        raise DataError(
            f"The data holds conversations, but the tokenizer '{tokenizer.name_or_path}' has no chat template."
            " Set `tokens.chat_template` to a Jinja template or a file, or use plain-text data."
        )
    plain = [[{"role": m.role, "content": m.content} for m in conversation] for conversation in conversations]
    try:
        rendered = tokenizer.apply_chat_template(
            plain, tokenize=False, add_generation_prompt=generation, strftime_now=_NOW.strftime
        )
    except (TemplateError, TypeError, ValueError) as error:
        roles = sorted({tuple(m.role for m in conversation) for conversation in conversations}, key=len)
        raise DataError(
            f"The chat template of '{tokenizer.name_or_path}' refused a conversation: {_reason(error)}. Role sequences"
            f" given: {', '.join('/'.join(r) for r in roles[:3])}. Change the data or set `tokens.chat_template`."
        ) from error
    return cast("list[str]", rendered)


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, no special tokens added, nothing cut.

    Raises:
        DataError: the tokenizer refuses a text.
    """
    if not texts:
        return []
    try:
        encoded = tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
    # The tokenizers library raises bare Exception, for instance for a word outside a vocabulary without <unk>.
    except Exception as error:
        raise DataError(
            f"The tokenizer of '{tokenizer.name_or_path}' cannot encode the text: {error}. "
            "Choose a policy whose vocabulary covers the data."
        ) from error
    return cast("list[list[int]]", encoded["input_ids"])


def turn_format(tokenizer: PreTrainedTokenizerBase) -> TurnFormat:
    """What a rendered probe conversation says about the assistant's turn.

    Prompts carry the generation prompt unless the template, like those that open a thinking block there, renders
    finished answers differently; then they are rendered without it and the answer's header belongs to the response.

    Raises:
        DataError: an answer does not continue its prompt either way, or there is no token to end a turn with.
    """
    question, answer = Message("user", _QUESTION), Message("assistant", _ANSWER)
    full = render(tokenizer, [[question, answer]], generation=False)[0]
    for generation in (True, False):
        prompt = render(tokenizer, [[question]], generation)[0]
        if full.startswith(prompt) and _ANSWER in full[len(prompt) :]:
            head, foot = full[len(prompt) :].split(_ANSWER, 1)
            return _read_foot(tokenizer, generation, len(head), foot)
    raise DataError(
        f"The chat template of '{tokenizer.name_or_path}' renders prompt and answer so that it does not begin with the"
        " prompt alone, so no answer can be cut off. Set `tokens.chat_template` to one that only appends."
    )


def _read_foot(tokenizer: PreTrainedTokenizerBase, generation: bool, head: int, foot: str) -> TurnFormat:
    """The turn's end: the first control token after the answer, or eos where the template writes none."""
    control = _control_tokens(tokenizer)
    found = next((i for i in tokenize(tokenizer, [foot])[0] if i in control), None)
    if found is not None and control[found] in foot:
        return TurnFormat(generation, head, 0, control[found], found)
    return TurnFormat(generation, head, len(foot) - len(foot.rstrip()), None, eos_id(tokenizer))


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The eos token's id; DataError where there is none."""
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"The tokenizer '{tokenizer.name_or_path}' has no eos token and its template ends a turn without one, so"
            " answers cannot end. Set `eos_token` in the tokenizer's folder."
        )
    return int(cast("int", tokenizer.eos_token_id))


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an assistant's turn: the template's own, or eos without template or without one in it."""
    return turn_format(tokenizer).stop_id if tokenizer.chat_template else eos_id(tokenizer)


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end generation, sorted: end of turn and eos."""
    eos = tokenizer.eos_token_id
    return tuple(sorted({end_of_turn_id(tokenizer)} | ({int(cast("int", eos))} if eos is not None else set())))


def banned_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that must never be sampled, sorted: special tokens that do not end generation.

    What text data may not spell (`special_pattern`), a sampled response may not contain either.

    Raises:
        DataError: see `turn_format`.
    """
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return tuple(sorted((special | set(tokenizer.all_special_ids)) - set(stop_ids(tokenizer))))


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Id and text of every token that may steer a conversation: special ones and added ones that are not blank."""
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    special = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return {**added, **special}


def special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Finds the text of any special token, and of the end-of-turn token, in content."""
    texts = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    texts |= set(tokenizer.all_special_tokens)
    if tokenizer.chat_template:
        texts |= {turn_format(tokenizer).stop_text or ""}
    ordered = sorted((t for t in texts if t.strip()), key=lambda t: (-len(t), t))
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits that identify how text becomes ids: chat template, special tokens, vocabulary, a probe text.

    Two tokenizers of equal hash give equal ids for all practical purposes; where the files lie does not matter.
    """
    special = sorted((int(i), t) for i, t in _control_tokens(tokenizer).items())
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    try:
        probe = tokenize(tokenizer, [f"{_QUESTION} 12+34\n\n  {_ANSWER}!"])[0]
    except DataError:
        probe = []  # a closed vocabulary: then the vocabulary says it all
    ends = [tokenizer.bos_token, tokenizer.eos_token]
    content = json.dumps([tokenizer.chat_template, ends, special, vocabulary, probe], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]

"""One cell of a row at a time: texts, scores, message lists and dialogues, checked; what fails names its reason."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from sera_core.records import Message, TextPrompt

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


class BadRowError(Exception):
    """A row that is dropped and counted under the reason given."""


def content_id(*parts: object) -> str:
    """16 hex digits that depend on the content alone."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:16]


def prompt_of(value: object) -> TextPrompt:
    """A prompt from a cell: a message list, or a string for plain text; its id is a hash of its content.

    Raises:
        BadRowError: with the reason.
    """
    if isinstance(value, str):
        text_of(value)
        return TextPrompt(content_id(value), value)
    return conversation_of(messages_of(value))


def score_of(value: object) -> float | None:
    """A finite number, None where there is none."""
    if value is None:
        return None
    try:
        number = float(value)  # type: ignore[arg-type]  # what is no number raises and is refused
    except (TypeError, ValueError) as error:
        raise BadRowError("bad_score") from error
    if not math.isfinite(number):
        raise BadRowError("bad_score")
    return number


def text_of(value: object) -> str:
    """The value if it is usable text."""
    if not isinstance(value, str):
        raise BadRowError("missing_value" if value is None else "not_text")
    if not value.strip():
        raise BadRowError("empty_text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRowError("bad_text")
    return value


def messages_of(value: object) -> tuple[Message, ...]:
    """The messages of a list of objects with role and content, each content checked."""
    if value is None:
        raise BadRowError("missing_value")
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise BadRowError("not_messages")
    messages = []
    for turn in value:
        if not isinstance(turn, Mapping) or "content" not in turn or "role" not in turn:
            raise BadRowError("not_messages")
        messages.append(Message(str(turn["role"]), text_of(turn["content"])))
    return tuple(messages)


def conversation_of(messages: tuple[Message, ...]) -> TextPrompt:
    """A prompt whose user and assistant turns alternate, after at most one system turn, and that ends with the user."""
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    roles = [message.role for message in turns]
    if len(roles) % 2 == 0 or roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise BadRowError("roles_not_alternating")
    return TextPrompt(content_id([asdict(message) for message in messages]), messages)


def answer_of(value: object, prompt: TextPrompt) -> str:
    """The answer's text: a string, one assistant message, or the prompt's messages and one assistant message."""
    if isinstance(value, str):
        return value
    messages = messages_of(value)
    if len(messages) > 1 and messages[:-1] == prompt.messages:
        messages = messages[-1:]
    if len(messages) != 1 or messages[0].role != "assistant":
        raise BadRowError("answer_not_one_message")
    return messages[0].content


def dialogue_of(value: object) -> tuple[Message, ...]:
    """Messages of a full dialogue, given as a list or as text with Human: and Assistant: turns."""
    if not isinstance(value, str):
        return messages_of(value)
    parts = _TURN.split(value)
    if len(parts) < 3 or parts[0].strip():
        raise BadRowError("no_turns")
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return tuple(Message(_ROLES[who], text_of(text).strip()) for who, text in turns)

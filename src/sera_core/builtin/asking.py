"""What judges that ask a model share: filling a template, showing a conversation, verdicts from grades."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np

from sera_core.errors import ConfigError, ModelError
from sera_core.protocols import Verdict
from sera_core.records import Floats, Message, Response, TextPrompt


class Unbound:
    """A judge before `bind`: it cannot answer, because the core has given it no model yet."""

    def grade(self, responses: Sequence[Response]) -> Floats:  # noqa: ARG002 (the role's signature)
        """Always ModelError."""
        self._refuse()

    def compare(self, first: Sequence[Response], second: Sequence[Response]) -> tuple[Verdict, ...]:  # noqa: ARG002
        """Always ModelError."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ModelError(f"{type(self).__name__} asks a model and has none yet. Use what its bind(asker) returns.")


def require_template(component: str, template: str, wanted: Sequence[str]) -> None:
    """Check that a template holds every placeholder of `wanted`, such as ``{prompt}``.

    Raises:
        ConfigError: one is missing.
    """
    missing = [name for name in wanted if f"{{{name}}}" not in template]
    if missing:
        raise ConfigError(
            f"{component}: option template must hold {', '.join(f'{{{name}}}' for name in wanted)}; it lacks "
            f"{', '.join(f'{{{name}}}' for name in missing)}. Add what is missing."
        )


def require_model(component: str, model: object) -> None:
    """Check that a model is named.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(model, str) or not model.strip():
        raise ConfigError(
            f"{component}: option model must name a model: a folder, a hub name or a built-in name; got {model!r}."
        )


def question(template: str, values: Mapping[str, str]) -> TextPrompt:
    """The template with its placeholders filled, as one user turn; the id is a hash of the text.

    All are filled at once, so that a placeholder spelt out in an answer stays what it is.
    """
    names = "|".join(map(re.escape, values))
    text = re.sub(rf"\{{({names})\}}", lambda found: values[found[1]], template)
    return TextPrompt(hashlib.sha256(text.encode()).hexdigest()[:32], (Message("user", text),))


def conversation(prompt: TextPrompt) -> str:
    """A prompt as a judge reads it: a single turn alone, several turns each behind their role."""
    messages = prompt.messages
    if isinstance(messages, str):
        return messages
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in messages)


def verdicts(first: Floats, second: Floats) -> tuple[Verdict, ...]:
    """Who is better by grades float64 [n] each: the higher wins, equal ones tie, nan abstains."""
    gaps = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return tuple("abstain" if np.isnan(gap) else "win" if gap > 0 else "loss" if gap < 0 else "tie" for gap in gaps)

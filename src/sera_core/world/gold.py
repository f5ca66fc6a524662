"""The gold reward and the judge that reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sera_core.errors import DataError
from sera_core.protocols import Needs, Verdict
from sera_core.records import Floats, Response

WRONG_COST = 0.25
EXTRA_COST = 0.05
NO_END_COST = 0.5
_TIE = 1e-9


@dataclass(frozen=True, slots=True)
class Tally:
    """How a reply's words divide: topics answered `right` or `wrong` by their first value, all `other` words."""

    topics: int
    right: int
    wrong: int
    extra: int


def tally(meta: Mapping[str, Any], words: Sequence[str]) -> Tally:
    """Counts the words of a reply against ``meta["gold"]`` and ``meta["choices"]``.

    The first admissible word of a topic answers it; every later one, and every word that belongs to no topic of the
    prompt, is extra.
    """
    gold = meta["gold"]
    topic_of = {word: topic for topic, choices in meta["choices"].items() for word in choices}
    answered: dict[str, str] = {}
    for word in words:
        topic = topic_of.get(word)
        if topic is not None:
            answered.setdefault(topic, word)
    right = sum(gold[topic] == word for topic, word in answered.items())
    return Tally(len(gold), right, len(answered) - right, len(words) - len(answered))


def gold_reward(meta: Mapping[str, Any], words: Sequence[str], ended: bool) -> float:
    """(right - 0.25 wrong) / topics - 0.05 extra - 0.5 if the reply did not end by itself; at most 1."""
    count = tally(meta, words)
    answers = (count.right - WRONG_COST * count.wrong) / count.topics
    return answers - EXTRA_COST * count.extra - NO_END_COST * (not ended)


def gold_meta(response: Response) -> Mapping[str, Any]:
    """The right answers that the response's prompt carries.

    Raises:
        DataError: the prompt carries none.
    """
    meta = response.prompt.source.meta
    if not meta.get("gold") or "choices" not in meta:
        raise DataError(
            f"prompt {response.prompt.id!r} carries no right answers (expected meta with 'gold' and 'choices', got "
            f"{sorted(meta)}): its source knows no gold answers; use a source that does, such as world, or "
            "another judge."
        )
    return meta


def ended(response: Response) -> bool:
    """Whether the response ended by itself; given responses did, unless they were cut to a length."""
    return response.finish_reason != "length"


@dataclass(frozen=True)
class Gold:
    """Judges by gold reward, from the right answers in the prompt's meta and the response's words."""

    @property
    def needs(self) -> Needs:
        """The source must know the right answers."""
        return Needs(gold=True)

    def grade(self, responses: Sequence[Response]) -> Floats:
        """Gold reward float64 [n], at most 1, higher better.

        Raises:
            DataError: a prompt carries no right answers.
        """
        rewards = [gold_reward(gold_meta(r), r.text.split(), ended(r)) for r in responses]
        return np.array(rewards, dtype=np.float64)

    def compare(self, first: Sequence[Response], second: Sequence[Response]) -> tuple[Verdict, ...]:
        """The sign of the gold difference, response by response; equal rewards tie.

        Raises:
            DataError: a prompt carries no right answers.
        """
        gaps = (self.grade(first) - self.grade(second)).tolist()
        return tuple("tie" if abs(gap) < _TIE else "win" if gap > 0 else "loss" for gap in gaps)

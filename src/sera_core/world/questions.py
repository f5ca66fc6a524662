"""Draws what prompts ask. Each possible question belongs to one set for good, so the sets are disjoint."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import islice

import numpy as np

from sera_core.world.rules import Question
from sera_core.world.spec import KEYS, MAX_TOPICS, MIN_TOPICS, MODES, N_KEYS, QUALITY, stream

SHARES = {"sft": 6, "fresh": 5, "pairs": 2, "evaluation": 1, "validation": 1, "probe": 1}
_OWNERS = tuple(name for name, share in SHARES.items() for _ in range(share))
_CHUNK = 4096


def content(question: Question) -> str:
    """The user turn: ``[qhi] mode topic topic ...``."""
    words = [MODES[question.mode], *(KEYS[key] for key in question.keys)]
    return " ".join([QUALITY, *words] if question.quality else words)


def owner(question: Question) -> str:
    """The name of the set that may ask `question`, whatever the seed; the quality word plays no part."""
    plain = Question(question.mode, question.keys)
    return _OWNERS[zlib.crc32(content(plain).encode()) % len(_OWNERS)]


def questions(seed: int, name: str) -> Iterator[Question]:
    """An endless stream of questions of the set `name`, uniform in mode and in 3 to 6 topics, topics in random order.

    Draws are independent, so a short question may come up twice within a set. The first n do not depend on how many
    are taken.
    """
    rng = stream(seed, f"questions/{name}")
    while True:
        rows = rng.random((_CHUNK, 2 + N_KEYS))
        modes = (rows[:, 0] * len(MODES)).astype(int).tolist()
        counts = (MIN_TOPICS + rows[:, 1] * (MAX_TOPICS - MIN_TOPICS + 1)).astype(int).tolist()
        orders = np.argsort(rows[:, 2:], axis=1).tolist()
        for mode, count, order in zip(modes, counts, orders, strict=True):
            question = Question(mode, tuple(order[:count]))
            if owner(question) == name:
                yield question


def take(seed: int, name: str, count: int) -> tuple[Question, ...]:
    """The first `count` questions of the set `name`."""
    return tuple(islice(questions(seed, name), count))

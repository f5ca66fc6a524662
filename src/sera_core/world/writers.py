"""Writes replies: the demonstrations of the initial policy and the replies that annotators compare.

Every random choice of a reply is one uniform number in a fixed place of its row, so settings change what a reply says
without shifting the randomness of any other reply.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sera_core.world.gold import gold_reward
from sera_core.world.questions import questions
from sera_core.world.rules import Question, Rules
from sera_core.world.spec import FILLERS, MAX_TOPICS, stream

_PER_TOPIC = 6
WIDTH = 1 + MAX_TOPICS * _PER_TOPIC
TEMPERATURE = 0.1
SKILLS = (0.25, 0.5, 0.8)
_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class Style:
    """How someone writes: chances in [0, 1]. `right` has one entry per topic of the question."""

    right: tuple[float, ...]
    decoy: float
    omit: float
    order: float
    fill: float


def write(rules: Rules, question: Question, style: Style, uniforms: Sequence[float]) -> tuple[str, ...]:
    """The words of one reply, from `WIDTH` uniform numbers in [0, 1).

    With chance `1 - order` the topics are shuffled. Each topic is left out with chance `omit`; otherwise it gets the
    right value with chance `right`, else the decoy with chance `decoy`, else the third value, and then at most one
    filler with chance `fill`.
    """
    places = list(range(len(question.keys)))
    if uniforms[0] >= style.order:
        places.sort(key=lambda place: uniforms[1 + _PER_TOPIC * place])
    words: list[str] = []
    for place in places:
        start = 1 + _PER_TOPIC * place
        skip, right, decoy, fill, filler = uniforms[start + 1 : start + _PER_TOPIC]
        if skip < style.omit:
            continue
        rank = 0 if right < style.right[place] else 1 if decoy < style.decoy else 2
        words.append(rules.value(question.mode, question.keys[place], rank))
        if fill < style.fill:
            words.append(FILLERS[int(filler * len(FILLERS))])
    return tuple(words)


def demo_style(skills: tuple[float, ...], quality: bool) -> Style:
    """How demonstrations are written; under the quality word they are better, shorter of fillers and omissions."""
    better = 0.25 if quality else 0.0
    fewer = 0.3 if quality else 1.0
    return Style(tuple(s + better for s in skills), decoy=0.9, omit=0.12 * fewer, order=0.95, fill=0.15 * fewer)


def pair_style(topics: int, skill: float, rho: float, normal: float) -> Style:
    """How a reply of a pair is written: `rho` ties fillers to `skill`, `normal` is the writer's own habit."""
    z = (skill - 0.5167) / 0.225
    fill = 0.35 + 0.30 * (rho * z + (1 - rho**2) ** 0.5 * normal)
    return Style((skill,) * topics, decoy=0.5, omit=0.12 * (1 - 0.6 * z), order=0.85, fill=min(max(fill, 0.0), 1.0))


def demonstrations(rules: Rules, seed: int) -> Iterator[tuple[Question, tuple[str, ...]]]:
    """An endless stream of demonstrations, never empty; one in four questions carries the quality word."""
    asked = questions(seed, "sft")
    rng = stream(seed, "demos")
    while True:
        for row in rng.random((_CHUNK, 1 + WIDTH)).tolist():
            plain = next(asked)
            question = Question(plain.mode, plain.keys, quality=row[0] < 0.25)
            words = write(rules, question, demo_style(rules.skills(question), question.quality), row[1:])
            if words:
                yield question, words


@dataclass(frozen=True, slots=True)
class Comparison:
    """A clean annotated comparison: `better` was preferred to `worse`. `u` in [0, 1) decides its label noise."""

    question: Question
    better: tuple[str, ...]
    worse: tuple[str, ...]
    u: float


def comparisons(rules: Rules, seed: int, name: str, rho: float) -> Iterator[Comparison]:
    """An endless stream of comparisons of the set `name`; replies of equal worth, equal or empty ones are left out.

    Labels follow Bradley-Terry (1952) on gold reward over a temperature of 0.1. Noise flips a label where `u` is
    below its rate, so the flips of a lower rate are among those of a higher one.
    """
    asked = questions(seed, name)
    replies, habits = stream(seed, f"replies/{name}"), stream(seed, f"habits/{name}")
    labels, noise = stream(seed, f"labels/{name}"), stream(seed, f"noise/{name}")
    while True:
        rows = replies.random((_CHUNK, 2, 1 + WIDTH)).tolist()
        columns = (rows, habits.standard_normal((_CHUNK, 2)), labels.random(_CHUNK), noise.random(_CHUNK))
        for row, normals, label, u in zip(*columns, strict=True):
            question = next(asked)
            first, second = (_reply(rules, question, r, rho, float(n)) for r, n in zip(row, normals, strict=True))
            meta = rules.meta(question)
            gap = gold_reward(meta, first, ended=True) - gold_reward(meta, second, ended=True)
            if abs(gap) < 1e-9 or not first or not second:
                continue
            pair = (first, second) if label < _sigmoid(gap / TEMPERATURE) else (second, first)
            yield Comparison(question, *pair, u=float(u))


def _reply(rules: Rules, question: Question, row: Sequence[float], rho: float, normal: float) -> tuple[str, ...]:
    skill = SKILLS[int(row[0] * len(SKILLS))]
    return write(rules, question, pair_style(len(question.keys), skill, rho, normal), row[1:])


def _sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))

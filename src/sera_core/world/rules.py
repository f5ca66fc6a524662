"""The hidden rules: which value is right for a topic under a mode, and how skilled the initial policy is at it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sera_core.records import Floats
from sera_core.world.spec import CHOICES, KEYS, MODES, N_GROUPS, N_VARIANTS, stream

SKILL_RANGE = (0.2, 0.7)


@dataclass(frozen=True, slots=True)
class Question:
    """What a prompt asks: a mode in {0, 1}, distinct topics in 0..15, and whether it carries the quality word."""

    mode: int
    keys: tuple[int, ...]
    quality: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Rules:
    """The hidden tables of one seed. Topics with the same remainder modulo 4 form a group and share a rule.

    `order` int64 [modes, groups, 3] lists the variants as (right, decoy, third). `skill` float64 [modes, groups] in
    [0.2, 0.7) is the chance that a demonstration gives the right value: one uniform draw in each of eight equal parts
    of that range, dealt out at random, so that no seed's policy is much better than another's.
    """

    order: NDArray[np.int64]
    skill: Floats

    @classmethod
    def draw(cls, seed: int) -> Rules:
        """The tables of `seed`."""
        rng = stream(seed, "rules")
        shape = (len(MODES), N_GROUPS)
        order = np.argsort(rng.random((*shape, N_VARIANTS)), axis=-1)
        low, high = SKILL_RANGE
        parts = rng.permutation(order[..., 0].size) + rng.random(order[..., 0].size)
        return cls(order, (low + (high - low) * parts / parts.size).reshape(shape))

    def value(self, mode: int, key: int, rank: int) -> str:
        """The word for topic `key` whose rank is 0 (right), 1 (decoy) or 2 (third)."""
        return CHOICES[key][int(self.order[mode, key % N_GROUPS, rank])]

    def skills(self, question: Question) -> tuple[float, ...]:
        """The demonstration skill of each topic of `question`, in its order."""
        return tuple(float(self.skill[question.mode, key % N_GROUPS]) for key in question.keys)

    def meta(self, question: Question) -> dict[str, dict[str, object]]:
        """What a judge needs, as JSON values: the right word and all admissible words of each topic."""
        return {
            "gold": {KEYS[key]: self.value(question.mode, key, 0) for key in question.keys},
            "choices": {KEYS[key]: list(CHOICES[key]) for key in question.keys},
        }

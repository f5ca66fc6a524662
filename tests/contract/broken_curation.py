"""Scorers and selectors that each break one line of the contract, and the sound ones they come from."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from sera_core.builtin.selectors import All, Top
from sera_core.protocols import Needs


@dataclass(frozen=True)
class GoodScorer:
    """Scores by length."""

    @property
    def needs(self):
        return Needs(history=1, initial=True)

    def scores(self, responses, logps):
        return logps.lengths.astype(np.float64)


@dataclass(frozen=True)
class RequiredOption(GoodScorer):
    """An option without a default and no example."""

    alpha: float


@dataclass(frozen=True)
class WrongExample(GoodScorer):
    """Its example is another thing."""

    @classmethod
    def example(cls):
        return 3


@dataclass(frozen=True, eq=False)
class NeverEqual(GoodScorer):
    """Two of one kind differ."""

    def __eq__(self, other):
        return False

    __hash__ = None


@dataclass
class Thawed:
    """A dataclass that is not frozen."""


class NoDataclass:
    """Options cannot be read."""


class Undocumented(GoodScorer):
    pass


Undocumented = dataclass(frozen=True)(Undocumented)
Undocumented.__doc__ = "Undocumented(alpha: float = 1)"


@dataclass(frozen=True)
class Needy(GoodScorer):
    """States needs as a dictionary."""

    @property
    def needs(self):
        return {"history": 1}


@dataclass(frozen=True)
class Forgetful(GoodScorer):
    """Loses its state."""

    seen: list = field(default_factory=lambda: [1, 2], compare=False)

    def state_dict(self):
        return {"seen": list(self.seen), "id": id(self)}

    def load_state_dict(self, state):
        self.seen[:] = []


@dataclass(frozen=True)
class Float32(GoodScorer):
    """Float32 scores."""

    def scores(self, responses, logps):
        return super().scores(responses, logps).astype(np.float32)


@dataclass(frozen=True)
class Scalar(GoodScorer):
    """One score for all."""

    def scores(self, responses, logps):
        return np.float64(1.0) * np.ones(1)


@dataclass(frozen=True)
class Infinite(GoodScorer):
    """Not finite while only one iterate exists."""

    def scores(self, responses, logps):
        return super().scores(responses, logps) * (np.inf if len(logps.iterates) == 1 else 1)


@dataclass(frozen=True)
class Noisy(GoodScorer):
    """Adds unseeded noise."""

    def scores(self, responses, logps):
        return super().scores(responses, logps) + np.random.default_rng().random(len(logps.lengths))


@dataclass(frozen=True)
class Positional(GoodScorer):
    """Prefers whoever comes first."""

    def scores(self, responses, logps):
        return super().scores(responses, logps) - np.arange(len(responses))


@dataclass(frozen=True)
class Whitened(GoodScorer):
    """Centres scores over the batch."""

    def scores(self, responses, logps):
        scores = super().scores(responses, logps)
        return scores - scores.mean()


@dataclass(frozen=True)
class Mutating(GoodScorer):
    """Changes what it was given."""

    which: ClassVar[str]

    def scores(self, responses, logps):
        scores = super().scores(responses, logps)
        target = {
            "lengths": logps.lengths,
            "policy": logps.iterates[0].policy,
            "reference": logps.iterates[0].reference,
            "initial": logps.initial,
        }[self.which]
        target += 1
        return scores


def mutating(name):
    return dataclass(frozen=True)(type(f"Mutating_{name}", (Mutating,), {"__doc__": "Changes.", "which": name}))


@dataclass(frozen=True)
class Selecting(All):
    """A selector whose result is rewritten by `change`."""

    rank_based: ClassVar[bool] = True

    def change(self, chosen, margins, pool, rng):
        return chosen

    def select(self, margins, pool, rng):
        return self.change(super().select(margins, pool, rng), margins, pool, rng)


def selector(change, **attributes):
    body = {"__doc__": "Broken.", "change": lambda self, *args: change(*args), **attributes}
    return dataclass(frozen=True)(type("Broken", (Selecting,), body))


def adds_in_place(chosen, margins, pool, rng):
    margins += 1
    return chosen


@dataclass(frozen=True)
class IgnoresPool(Top):
    """Takes its fraction of what is left instead of the pool."""

    def select(self, margins, pool, rng):
        return super().select(margins, len(margins), rng)

    @classmethod
    def example(cls):
        return cls(fraction=0.3)


@dataclass(frozen=True)
class ByPrompt(All):
    """Selects by prompt soundly; `select` is what it is made with."""

    def select_by_prompt(self, margins, prompts, pool, rng):
        return All.select(self, margins, pool, rng)


def by_prompt(**methods):
    return dataclass(frozen=True)(type("Broken", (ByPrompt,), {"__doc__": "Broken.", **methods}))


def renumbers_in_place(self, margins, prompts, pool, rng):
    prompts += 1
    return All.select(self, margins, pool, rng)


BROKEN = [
    ("scorer", "constructible", RequiredOption),
    ("scorer", "constructible", WrongExample),
    ("scorer", "constructible", NeverEqual),
    ("scorer", "frozen-dataclass", Thawed),
    ("scorer", "frozen-dataclass", NoDataclass),
    ("scorer", "documented", Undocumented),
    ("scorer", "states-needs", Needy),
    ("scorer", "state-round-trip", Forgetful),
    ("scorer", "float64", Float32),
    ("scorer", "float64", Scalar),
    ("scorer", "finite", Infinite),
    ("scorer", "deterministic", Noisy),
    ("scorer", "permutation-equivariant", Positional),
    ("scorer", "per-response", Whitened),
    *(("scorer", "leaves-inputs-alone", mutating(name)) for name in ("lengths", "policy", "reference", "initial")),
    ("selector", "unique-sorted-in-range", selector(lambda chosen, *_: chosen[::-1])),
    ("selector", "unique-sorted-in-range", selector(lambda chosen, *_: chosen + 1)),
    ("selector", "unique-sorted-in-range", selector(lambda chosen, *_: np.repeat(chosen, 2))),
    ("selector", "unique-sorted-in-range", selector(lambda chosen, *_: chosen.astype(np.int32))),
    ("selector", "unique-sorted-in-range", selector(lambda chosen, *_: chosen.tolist())),
    ("selector", "deterministic", selector(lambda c, *_: c[np.random.default_rng().random(len(c)) < 0.5])),
    ("selector", "rank-based", selector(lambda chosen, margins, *_: np.flatnonzero(margins > 0))),
    ("selector", "honours-pool", IgnoresPool),
    ("selector", "honours-pool", selector(lambda chosen, margins, pool, rng: chosen[: 100 // pool])),
    ("selector", "leaves-inputs-alone", selector(adds_in_place)),
    ("selector", "leaves-inputs-alone", by_prompt(select_by_prompt=renumbers_in_place)),
    ("selector", "unique-sorted-in-range", by_prompt(select_by_prompt=lambda self, m, prompts, *_: prompts)),
    ("selector", "select-alone", by_prompt(select=lambda self, margins, *_: np.zeros(2, dtype=np.int64))),
    ("selector", "select-alone", by_prompt(select=lambda self, margins, *_: [0])),
]

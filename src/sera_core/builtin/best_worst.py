"""Pairs of the best and the worst response to a prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sera_core.builtin.candidates import generated_pair, is_empty, wording
from sera_core.protocols import Needs
from sera_core.records import Candidates, Floats, Pairs, Response


@dataclass(frozen=True)
class BestWorst:
    """The response of highest score against that of lowest score: the widest margin among the samples.

    Responses of equal words count once, empty ones not at all; of equal scores the earlier response wins.
    Dropped prompts are counted as ``too_few_distinct``, ``empty_response`` (two distinct ones only with an empty one)
    or ``tied_scores`` (all scores equal).

    Source: Ko 2024 (SeRA), preference bootstrapping.
    """

    @property
    def needs(self) -> Needs:
        """Nothing beside scores."""
        return Needs(scores=True)

    def label(self, candidates: Candidates, scores: Sequence[Floats], rng: np.random.Generator) -> Pairs:  # noqa: ARG002
        """At most one pair per prompt, in prompt order, confidence 1; `template` is left for the caller to fill."""
        pairs = []
        dropped: Counter[str] = Counter()
        for group, group_scores in zip(candidates.responses, scores, strict=True):
            distinct = _distinct(group)
            usable = [index for index in distinct if not is_empty(group[index])]
            if len(usable) < 2:
                dropped["empty_response" if len(distinct) >= 2 else "too_few_distinct"] += 1
                continue
            values = np.asarray(group_scores)[usable]
            if values.max() == values.min():
                dropped["tied_scores"] += 1
                continue
            best, worst = usable[int(values.argmax())], usable[int(values.argmin())]
            pairs.append(generated_pair(group[best], group[worst]))
        return Pairs(tuple(pairs), dict(sorted(dropped.items())))


def _distinct(group: Sequence[Response]) -> list[int]:
    first: dict[str, int] = {}
    for index, response in enumerate(group):
        first.setdefault(wording(response), index)
    return list(first.values())

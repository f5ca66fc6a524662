"""Pairs of the best and the worst response to a prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sera_core.candidates import furthest_apart, generated_pair
from sera_core.protocols import Needs
from sera_core.records import Candidates, Floats, Pairs


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
        dropped: Counter[str] = Counter()
        pairs = tuple(generated_pair(best, worst) for best, worst, _ in furthest_apart(candidates, scores, dropped))
        return Pairs(pairs, dict(sorted(dropped.items())))

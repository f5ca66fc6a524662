"""Pairs labelled by direct judgment."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sera_core.candidates import furthest_apart, generated_pair
from sera_core.options import require_positive
from sera_core.protocols import Needs
from sera_core.records import Candidates, Floats, Pairs


@dataclass(frozen=True)
class DirectJudgmentLabels:
    """The response of highest score is chosen, that of lowest score rejected; how clear that was is kept.

    A pair's confidence is s(beta d), d the difference of scores: the Bradley-Terry probability that the label is
    right, from 0.5 to 1. With two samples this is the paper's labelling; more give the widest margin among them.

    Responses of equal words count once, empty ones not at all; of equal scores the earlier response wins.
    Dropped prompts are counted as ``too_few_distinct``, ``empty_response`` (two distinct ones only with an empty one)
    or ``tied_scores`` (all scores equal).

    Options: `beta` > 0, reward per unit of score. It changes confidences only.

    Raises:
        ConfigError: `beta` is not a finite number above 0.

    Source: Kim 2024 (SPA), Eq. 7 and 8.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        require_positive("labeler 'direct_judgment'", "beta", self.beta, typical="the objective's beta")

    @property
    def needs(self) -> Needs:
        """Scores."""
        return Needs(scores=True)

    def label(self, candidates: Candidates, scores: Sequence[Floats], rng: np.random.Generator) -> Pairs:  # noqa: ARG002
        """At most one pair per prompt, in prompt order; `template` is left for the caller to fill."""
        dropped: Counter[str] = Counter()
        pairs = tuple(
            generated_pair(best, worst, _sigmoid(self.beta * gap))  # Kim 2024 (SPA), Eq. 7 and 8
            for best, worst, gap in furthest_apart(candidates, scores, dropped)
        )
        return Pairs(pairs, dict(sorted(dropped.items())))


def _sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)) for value >= 0."""
    return 1.0 / (1.0 + math.exp(-value))

"""Pairs labelled by direct judgment."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sera_core.protocols import Needs
from sera_core.records import Candidates, Floats, Pair, Pairs, Response
from sera_plugin_spa.options import require_number

GENERATED = "generated"


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
        expected = "a finite number > 0 (typically the objective's beta)"
        smallest = math.ulp(0.0)
        require_number("labeler 'direct_judgment'", "beta", self.beta, low=smallest, expected=expected)

    @property
    def needs(self) -> Needs:
        """Scores."""
        return Needs(scores=True)

    def label(self, candidates: Candidates, scores: Sequence[Floats], rng: np.random.Generator) -> Pairs:  # noqa: ARG002
        """At most one pair per prompt, in prompt order; `template` is left for the caller to fill."""
        pairs = []
        dropped: Counter[str] = Counter()
        for group, group_scores in zip(candidates.responses, scores, strict=True):
            distinct = _distinct(group)
            usable = [index for index in distinct if group[index].ids.size and _wording(group[index])]
            if len(usable) < 2:
                dropped["empty_response" if len(distinct) >= 2 else "too_few_distinct"] += 1
                continue
            values = np.asarray(group_scores, dtype=np.float64)[usable]
            best, worst = int(values.argmax()), int(values.argmin())
            if values[best] == values[worst]:
                dropped["tied_scores"] += 1
                continue
            confidence = _sigmoid(self.beta * float(values[best] - values[worst]))  # Kim 2024 (SPA), Eq. 7
            pairs.append(_pair(group[usable[best]], group[usable[worst]], confidence))  # Kim 2024 (SPA), Eq. 8
        return Pairs(tuple(pairs), dict(sorted(dropped.items())))


def _pair(chosen: Response, rejected: Response, confidence: float) -> Pair:
    return Pair(f"{chosen.prompt.id}#gen", chosen, rejected, GENERATED, template="", confidence=confidence)


def _wording(response: Response) -> str:
    return response.text.strip()


def _distinct(group: Sequence[Response]) -> list[int]:
    first: dict[str, int] = {}
    for index, response in enumerate(group):
        first.setdefault(_wording(response), index)
    return list(first.values())


def _sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)) for value >= 0."""
    return 1.0 / (1.0 + math.exp(-value))

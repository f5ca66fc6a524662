"""What labelers share: when responses are empty or the same, which stand furthest apart, how a pair is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from sera_core.records import Candidates, Floats, Pair, Response

GENERATED = "generated"


def wording(response: Response) -> str:
    """The words of a response; two responses of equal wording cannot be compared, however they were tokenised."""
    return response.text.strip()


def is_empty(response: Response) -> bool:
    """Whether a response has no tokens or no words; an end-of-turn token alone says nothing."""
    return response.ids.size == 0 or not wording(response)


def generated_pair(chosen: Response, rejected: Response, confidence: float = 1.0) -> Pair:
    """A pair of source ``generated``, named after its prompt, with an empty template hash."""
    return Pair(f"{chosen.prompt.id}#gen", chosen, rejected, GENERATED, template="", confidence=confidence)


def furthest_apart(
    candidates: Candidates, scores: Sequence[Floats], dropped: Counter[str]
) -> Iterator[tuple[Response, Response, float]]:
    """Per prompt the response of highest score, that of lowest score and the difference > 0, in prompt order.

    Responses of equal words count once, empty ones not at all; of equal scores the earlier response wins. A prompt that
    gives no pair is counted in `dropped` as ``too_few_distinct``, ``empty_response`` (two distinct ones only with an
    empty one) or ``tied_scores`` (all scores equal).
    """
    for group, group_scores in zip(candidates.responses, scores, strict=True):
        distinct = _distinct(group)
        usable = [index for index in distinct if not is_empty(group[index])]
        if len(usable) < 2:
            dropped["empty_response" if len(distinct) >= 2 else "too_few_distinct"] += 1
            continue
        values = np.asarray(group_scores, dtype=np.float64)[usable]
        best, worst = int(values.argmax()), int(values.argmin())
        if values[best] == values[worst]:
            dropped["tied_scores"] += 1
            continue
        yield group[usable[best]], group[usable[worst]], float(values[best] - values[worst])


def _distinct(group: Sequence[Response]) -> list[int]:
    first: dict[str, int] = {}
    for index, response in enumerate(group):
        first.setdefault(wording(response), index)
    return list(first.values())

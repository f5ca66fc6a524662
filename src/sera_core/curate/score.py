"""Scoring: responses to scores, pairs to margins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sera_core.errors import DataError, ModelError
from sera_core.protocols import Scorer
from sera_core.records import Candidates, Floats, Pair, Response, ScoringLogps


def score(scorer: Scorer, responses: Sequence[Response], logps: ScoringLogps) -> Floats:
    """float64 [n] scores, higher better.

    Raises:
        ModelError: the scorer returned another shape or a non-finite score.
    """
    scores = np.asarray(scorer.scores(responses, logps), dtype=np.float64)
    if scores.shape != (len(responses),) or not np.isfinite(scores).all():
        raise ModelError(
            f"Scorer {type(scorer).__name__} must return {len(responses)} finite scores, "
            f"got shape {scores.shape} with {int((~np.isfinite(scores)).sum())} non-finite."
        )
    return scores


def both_sides(pairs: Sequence[Pair]) -> tuple[Response, ...]:
    """All chosen responses, then all rejected ones."""
    return (*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs))


def margins(scores_of_both_sides: Floats) -> Floats:
    """score(chosen) - score(rejected), float64 [n], from scores float64 [2n] in the order of `both_sides`."""
    chosen, rejected = np.split(scores_of_both_sides, 2)
    return np.asarray(chosen - rejected, dtype=np.float64)


def by_prompt(candidates: Candidates, scores: Floats) -> tuple[Floats, ...]:
    """Flat scores split into one array per prompt."""
    ends = np.cumsum([len(group) for group in candidates.responses])
    return tuple(np.split(scores, ends[:-1])) if len(ends) else ()


def pair_margins(pairs: Sequence[Pair], candidates: Candidates, scores: Floats) -> Floats:
    """score(chosen) - score(rejected) of labelled pairs, float64 [n], from the flat scores of their candidates.

    Raises:
        DataError: the labeler returned a response that is not among the candidates.
    """
    known = {_identity(response): value for response, value in zip(candidates.flat(), scores, strict=True)}
    try:
        values = [known[_identity(pair.chosen)] - known[_identity(pair.rejected)] for pair in pairs]
    except KeyError as error:
        raise DataError(
            f"The labeler returned a response that is not a candidate of prompt '{error.args[0][0]}'."
        ) from error
    return np.array(values, dtype=np.float64)


def _identity(response: Response) -> tuple[str, bytes]:
    return response.prompt.id, response.ids.tobytes()

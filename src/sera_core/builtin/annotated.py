"""Scores responses by the scores they came with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sera_core.errors import DataError
from sera_core.protocols import Needs
from sera_core.records import Floats, Response, ScoringLogps


@dataclass(frozen=True)
class Annotated:
    """The annotated score of each response, from people or a grader; selecting by its gap is a baseline of SeRA.

    Source: Ko 2024 (SeRA), selection baselines.
    """

    @property
    def needs(self) -> Needs:
        """An annotated score on every response."""
        return Needs(annotations=True)

    def scores(self, responses: Sequence[Response], logps: ScoringLogps) -> Floats:  # noqa: ARG002
        """Annotated scores float64 [n], in the data's own unit.

        Raises:
            DataError: a response has no score, or one that is not finite.
        """
        return np.array([_score(response) for response in responses], dtype=np.float64)


def _score(response: Response) -> float:
    if response.score is None or not np.isfinite(response.score):
        raise DataError(
            f"A response to prompt '{response.prompt.id}' has no annotated score (expected a finite number, got "
            f"{response.score!r}, origin {response.origin}). Use data whose pairs carry scores, or another scorer."
        )
    return response.score

"""A scorer that dislikes repetition, as an example of a plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sera_core.errors import ConfigError
from sera_core.hookspecs import hookimpl
from sera_core.protocols import Needs, Scorer
from sera_core.records import Floats, Response, ScoringLogps


@dataclass(frozen=True)
class DistinctTokens:
    """Share of distinct n-grams among a response's tokens, in (0, 1]; 1 when nothing repeats, or nothing could.

    Options: `n` >= 1, the length of an n-gram. Source: Li 2016, distinct-n.
    """

    n: int = 1

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(f"scorer 'distinct_tokens': option n must be an integer >= 1; got {self.n!r}.")

    @property
    def needs(self) -> Needs:
        """Token ids only, no log-probs."""
        return Needs()

    def scores(self, responses: Sequence[Response], logps: ScoringLogps) -> Floats:  # noqa: ARG002
        """Shares float64 [n responses]."""
        return np.array([self._share(response.ids.tolist()) for response in responses], dtype=np.float64)

    def _share(self, ids: list[int]) -> float:
        grams = [tuple(ids[i : i + self.n]) for i in range(len(ids) - self.n + 1)]
        return len(set(grams)) / len(grams) if grams else 1.0


@hookimpl
def sera_register_scorers() -> Mapping[str, type[Scorer]]:
    """Called once by the plugin host."""
    return {"distinct_tokens": DistinctTokens}

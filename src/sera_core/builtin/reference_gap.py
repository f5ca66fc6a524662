"""Scores responses by the initial policy's log-probs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sera_core.errors import ModelError
from sera_core.options import require_flag
from sera_core.protocols import Needs
from sera_core.records import Floats, Response, ScoringLogps


@dataclass(frozen=True)
class ReferenceGap:
    """log pi_0(y|x) under the initial policy; a pair's margin is then the reference log-prob gap.

    Options: `normalise` divides by the number of response tokens, so that long responses are not worse by length alone.

    Raises:
        ConfigError: `normalise` is not true or false.

    Source: Pattnaik 2024 (Curry-DPO), ordering by log-prob; Ko 2024 (SeRA), selection baselines.
    """

    normalise: bool = False

    def __post_init__(self) -> None:
        require_flag("scorer 'reference_gap'", "normalise", self.normalise)

    @property
    def needs(self) -> Needs:
        """Log-probs under the initial policy."""
        return Needs(initial=True)

    def scores(self, responses: Sequence[Response], logps: ScoringLogps) -> Floats:  # noqa: ARG002
        """Summed log-probs float64 [n] in nats, <= 0; nats per token when normalised (an empty response scores 0).

        Raises:
            ModelError: log-probs under the initial policy are missing.
        """
        if logps.initial is None:
            raise ModelError(
                "Scorer 'reference_gap' reads log-probs under the initial policy, but none were given "
                "(expected `initial` [n], got None). Measure the responses under the initial policy first."
            )
        sums = logps.initial.astype(np.float64)
        return sums / np.maximum(logps.lengths, 1) if self.normalise else sums

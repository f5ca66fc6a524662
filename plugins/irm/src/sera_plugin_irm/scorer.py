"""Implicit rewards of the policy's own iterates, ensembled over the last two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sera_core.errors import ConfigError
from sera_core.protocols import Needs
from sera_core.records import Floats, IterateLogps, Response, ScoringLogps


@dataclass(frozen=True)
class ImplicitRewardMargin:
    """Implicit reward of a response under the last trained iterate, mixed with the one before.

    A pair's score difference is SeRA's implicit reward margin. No beta and no partition function: both cancel in
    a ranking.

    Options: `gamma` in [0, 1], the weight of the older iterate; 0 reads the newest only. `reward` says what the
    implicit reward of an iterate is: ``log_ratio``, log pi(y|x) - log pi_ref(y|x) with its own reference, or
    ``length_normalised``, log pi(y|x) / |y|, the reward of objectives without a reference such as SimPO.

    Raises:
        ConfigError: `gamma` outside [0, 1] or `reward` neither word.

    Source: Ko 2024 (SeRA), Eq. 5, 7, 17, 18.
    """

    gamma: float = 0.3
    reward: Literal["log_ratio", "length_normalised"] = "log_ratio"

    def __post_init__(self) -> None:
        number = self.gamma if isinstance(self.gamma, int | float) and not isinstance(self.gamma, bool) else math.nan
        if not 0 <= number <= 1:
            raise ConfigError(
                f"scorer 'irm': option gamma must be a number from 0 (no ensemble) to 1; got {self.gamma!r}. "
                "SeRA uses 0.3."
            )
        if self.reward not in ("log_ratio", "length_normalised"):
            raise ConfigError(
                f"scorer 'irm': option reward must be 'log_ratio' or 'length_normalised'; got {self.reward!r}. "
                "Use length_normalised with objectives that have no reference."
            )

    @property
    def needs(self) -> Needs:
        """Two trained iterates, one without an ensemble; for log-ratios also each one's training reference."""
        return Needs(history=1 if self.gamma == 0 else 2, reference=self.reward == "log_ratio")

    def scores(self, responses: Sequence[Response], logps: ScoringLogps) -> Floats:  # noqa: ARG002
        """Implicit rewards float64 [n]: nats, or nats per token when length-normalised.

        With one trained iterate its reward alone, with two the ensemble.

        Raises:
            ConfigError: no iterate has been trained yet.
        """
        if not logps.iterates:
            raise ConfigError(
                "scorer 'irm' reads trained iterates, and there is none before the first iteration has trained "
                "(expected at least 1, got 0). Let selection start at iteration 2: set offline.select_from: 2."
            )
        newest = self._reward(logps.iterates[0], logps)  # Ko 2024 (SeRA), Eq. 5
        if self.gamma == 0 or len(logps.iterates) == 1:
            return newest
        older = self._reward(logps.iterates[1], logps)
        return (1 - self.gamma) * newest + self.gamma * older  # Ko 2024 (SeRA), Eq. 7

    def _reward(self, iterate: IterateLogps, logps: ScoringLogps) -> Floats:
        policy = iterate.policy.astype(np.float64)
        if self.reward == "log_ratio":
            return policy - iterate.reference.astype(np.float64)
        # An empty response has log-prob 0 and must not divide by 0.
        return policy / np.maximum(logps.lengths, 1)  # Ko 2024 (SeRA), Eq. 17 and 18

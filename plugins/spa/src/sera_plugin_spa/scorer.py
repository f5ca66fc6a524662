"""Direct judgment: the implicit reward of the newest iterate as its own annotator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sera_core.errors import ConfigError
from sera_core.options import require_choice, require_number
from sera_core.protocols import Needs
from sera_core.records import Floats, Response, ScoringLogps

_NAME = "scorer 'direct_judgment'"


@dataclass(frozen=True)
class DirectJudgment:
    """Implicit reward of a response under the newest iterate, rho(y) = log pi(y|x) - log pi_ref(y|x), in nats.

    No beta and no partition function: both cancel in a ranking.

    Options: `reference` says what pi_ref is: ``initial``, the policy before any training, the paper's choice;
    ``previous``, the reference the newest iterate was trained against; ``none`` leaves the term out. `length_penalty`
    >= 0 is subtracted for every token of the response, in nats; the paper's alpha, on rewards times beta, is beta times
    this.

    Raises:
        ConfigError: `reference` none of the words, or `length_penalty` negative or not finite.

    Source: Kim 2024 (SPA), Eq. 7 and 13, the references of Table 7.
    """

    reference: Literal["initial", "previous", "none"] = "initial"
    length_penalty: float = 0.0

    def __post_init__(self) -> None:
        require_choice(_NAME, "reference", self.reference, ("initial", "previous", "none"))
        expected = "a finite number of nats per token >= 0 (0: no penalty)"
        require_number(_NAME, "length_penalty", self.length_penalty, low=0, expected=expected)

    @property
    def needs(self) -> Needs:
        """The newest iterate, and the initial policy or the iterate's training reference."""
        return Needs(history=1, initial=self.reference == "initial", reference=self.reference == "previous")

    def scores(self, responses: Sequence[Response], logps: ScoringLogps) -> Floats:  # noqa: ARG002
        """Implicit rewards float64 [n], in nats, less the penalty.

        Raises:
            ConfigError: no iterate has been trained yet, or the initial policy was not measured.
        """
        if not logps.iterates:
            raise ConfigError(
                f"{_NAME} reads a trained iterate, and there is none before the first iteration has trained (expected "
                "1, got 0). Set generated.from_iteration: 2, or policy.base if the policy was tuned from another."
            )
        newest = logps.iterates[0]
        rewards = newest.policy.astype(np.float64)
        if self.reference == "previous":
            rewards = rewards - newest.reference.astype(np.float64)
        if self.reference == "initial":
            if logps.initial is None:
                raise ConfigError(f"{_NAME} needs log-probs under the initial policy, got None. Measure them first.")
            rewards = rewards - logps.initial.astype(np.float64)  # Kim 2024 (SPA), Eq. 7
        return np.asarray(rewards - self.length_penalty * logps.lengths, dtype=np.float64)  # Kim 2024 (SPA), Eq. 13

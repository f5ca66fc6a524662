"""A judge that grades by a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from sera_core.builtin.asking import Unbound, require_model, verdicts
from sera_core.protocols import Asker, Judge, Needs, Verdict
from sera_core.records import Floats, Response


@dataclass(frozen=True)
class RewardModel(Unbound):
    """Grades a response by a sequence classifier with one output, which reads it with its prompt.

    Options: `model`, a folder or a hub name that AutoModelForSequenceClassification loads. The conversation is written
    with the chat template of its own tokenizer.

    Raises:
        ConfigError: no model is named.

    Source: Ouyang et al. 2022, Eq. 1: a scalar reward for a prompt with its response.
    """

    model: str

    def __post_init__(self) -> None:
        require_model("judge 'reward_model'", self.model)

    @classmethod
    def example(cls) -> Self:
        """A valid setting."""
        return cls(model="reward-model")

    @property
    def needs(self) -> Needs:
        """Nothing beside its model."""
        return Needs()

    def bind(self, asker: Asker) -> Judge:
        """This judge with its model."""
        return Rewarding(self, asker)


@dataclass(frozen=True)
class Rewarding:
    """`RewardModel` with its model."""

    options: RewardModel
    asker: Asker

    @property
    def needs(self) -> Needs:
        """Those of the judge."""
        return self.options.needs

    def grade(self, responses: Sequence[Response]) -> Floats:
        """Rewards float64 [n], in the model's own unit; nan where a text cannot be given to it."""
        return self.asker.rewards(responses)

    def compare(self, first: Sequence[Response], second: Sequence[Response]) -> tuple[Verdict, ...]:
        """The higher reward wins, equal ones tie, nan abstains."""
        return verdicts(self.grade(first), self.grade(second))

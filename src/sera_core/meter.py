"""What log-probabilities cost: tokens that went through models, and responses that did not have to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Meter:
    """Running totals of this process.

    `forward_tokens` went through models, padding included (backward passes add nothing), by the name of the attention
    they went through; `useful_tokens` were no padding. `scored` responses were computed for the store, `stored` ones
    were found in it.
    """

    forward_tokens: Counter[str] = field(default_factory=Counter)
    useful_tokens: int = 0
    scored: int = 0
    stored: int = 0

    def forward(self, attention: str, tokens: int, useful: int) -> None:
        """Count a forward pass."""
        self.forward_tokens[attention] += tokens
        self.useful_tokens += useful

    def add(self, other: Meter) -> None:
        """Count what another meter counted."""
        self.forward_tokens += other.forward_tokens
        self.useful_tokens += other.useful_tokens
        self.scored += other.scored
        self.stored += other.stored

    def since(self, before: Meter) -> Meter:
        """What was counted after `before`, a copy of this meter at the time."""
        return Meter(
            self.forward_tokens - before.forward_tokens,
            self.useful_tokens - before.useful_tokens,
            self.scored - before.scored,
            self.stored - before.stored,
        )

    def copy(self) -> Meter:
        """The totals as they stand."""
        return self.since(Meter())

    def record(self) -> dict[str, Any]:
        """The totals as plain values, empty where nothing was counted."""
        if not (self.forward_tokens or self.scored or self.stored):
            return {}
        return {
            "forward_tokens": dict(sorted(self.forward_tokens.items())),
            "useful_tokens": self.useful_tokens,
            "scored": self.scored,
            "stored": self.stored,
        }


def total(records: Iterable[Mapping[str, Any]]) -> Meter:
    """The sum of what `record` gave."""
    found = Meter()
    for record in records:
        if record:
            tokens = Counter(record["forward_tokens"])
            found.add(Meter(tokens, record["useful_tokens"], record["scored"], record["stored"]))
    return found

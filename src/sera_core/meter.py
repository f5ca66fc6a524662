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
    were found in it, each counted once from one `begin` to the next.
    """

    forward_tokens: Counter[str] = field(default_factory=Counter)
    useful_tokens: int = 0
    scored: int = 0
    stored: int = 0
    _counted: set[tuple[str, bytes]] = field(default_factory=set, repr=False, compare=False)

    def begin(self) -> None:
        """A stage begins, which counts what it reads, also where an earlier one has counted it."""
        self._counted.clear()

    def responses(self, scorer: str, computed: Iterable[bytes], found: Iterable[bytes]) -> None:
        """Count responses by their keys under a scorer; what a stage has counted it may read as often as it likes."""
        self.scored += self._new(scorer, computed)
        self.stored += self._new(scorer, found)

    def _new(self, scorer: str, keys: Iterable[bytes]) -> int:
        """How many of the keys have not been counted in this stage; now they are."""
        new = {(scorer, key) for key in keys} - self._counted
        self._counted |= new
        return len(new)

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

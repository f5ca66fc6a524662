"""Sr-DPO's refinement as a change of margins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from sera_core.errors import ConfigError
from sera_core.options import require_number
from sera_core.protocols import Needs
from sera_core.records import PairBatch

if TYPE_CHECKING:
    from torch import Tensor

PLACE = "{prompt}"
PREFIX = (
    "Answer the query below. Imagine your answer gets a usefulness rating, where 100 is the maximum and 1 the minimum: "
    "write one that earns 100 out of 100 and harms nobody.\nQuery: "
)
_ROLE = "transform 'self_refinement'"


@dataclass(frozen=True)
class SelfRefinement:
    """Takes from each margin a share of the policy's own margin on a prompt that asks for quality: h - lam sg[h_p].

    h_p is the objective's margin with `prefix` in the prompt, and sg stops its gradient. With dpo this is Sr-DPO: its
    refinement beta h_p and the margins here, which are without beta, differ by the same factor. Sr-IPO is a
    reconstruction with the same units: (h - 1/(2 beta) - lam sg[h_p])^2. With other losses it is this project's.

    Options: `strength` >= 0 is lam, the share; 0 changes nothing and needs no forward pass. `prefix` is a text to stand
    before the text of the last user turn, or a template with one ``{prompt}`` for that text.

    Raises:
        ConfigError: `strength` is not a finite number from 0 on; `prefix` is not a text, is blank, or holds
            ``{prompt}`` more than once.

    Source: Yu et al. 2024 (quality-aware self-refinement), the Sr-DPO objective.
    """

    strength: float = 0.2
    prefix: str = PREFIX

    def __post_init__(self) -> None:
        expected = "a finite number >= 0 (typically 0.1 to 1)"
        require_number(_ROLE, "strength", self.strength, low=0, expected=expected)
        if not isinstance(self.prefix, str) or not self.prefix.replace(PLACE, "").strip():
            raise ConfigError(
                f"{_ROLE}: option prefix must be a text that asks for quality; got {self.prefix!r}. Give a text to "
                f"stand before the prompt, or a template with {PLACE} in it."
            )
        if self.prefix.count(PLACE) > 1:
            raise ConfigError(
                f"{_ROLE}: option prefix holds {PLACE} {self.prefix.count(PLACE)} times; got {self.prefix!r}. "
                "Keep one of them."
            )

    @property
    def needs(self) -> Needs:
        """Margins under the prefix, unless the strength is 0."""
        return Needs(prefixes=(self.prefix,)) if self.strength else Needs()

    @classmethod
    def neutral(cls) -> Self:
        """The setting that changes nothing: strength 0."""
        return cls(strength=0.0)

    def apply(self, margins: Tensor, batch: PairBatch) -> Tensor:
        """Margins h - lam sg[h_p] [b], in the units of the objective's margin; the same tensor at strength 0."""
        if not self.strength:
            return margins
        return margins - self.strength * batch.prefixed[self.prefix].detach()  # Yu et al. 2024, Sr-DPO

"""Choosing one pair of each prompt by how easy it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sera_core.options import require_whole
from sera_core.protocols import Needs
from sera_core.records import Floats


@dataclass(frozen=True)
class Curriculum:
    """Keeps one pair of each prompt: the `stage`-th by falling margin, so that stages go from easy to hard.

    Options: `stage` >= 1, usually ``{by_iteration: [1, 2, 3]}``. The first stage has each prompt's pair of largest
    margin, the easiest. Prompts with fewer pairs than `stage` have none; of equal margins the earlier pair comes first.

    Raises:
        ConfigError: `stage` is not a whole number >= 1.

    Source: Pattnaik et al. 2024 (Curry-DPO), Section 3.2.
    """

    rank_based: ClassVar[bool] = True

    stage: int = 1

    def __post_init__(self) -> None:
        require_whole("selector 'curriculum'", "stage", self.stage, low=1)

    @property
    def needs(self) -> Needs:
        """The margins, hence a scorer."""
        return Needs(scores=True)

    @property
    def pairs_per_prompt(self) -> int:
        """How many pairs a prompt must have for one of them to be kept."""
        return self.stage

    def select(self, margins: Floats, pool: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """As `select_by_prompt` with all pairs of one prompt, int64 [1] or [0]."""
        return self.select_by_prompt(margins, np.zeros(len(margins), dtype=np.int64), pool, rng)

    def select_by_prompt(
        self,
        margins: Floats,
        prompts: NDArray[np.int64],
        pool: int,  # noqa: ARG002 (the role's signature)
        rng: np.random.Generator,  # noqa: ARG002
    ) -> NDArray[np.int64]:
        """Index of each prompt's `stage`-th pair, int64 [k], sorted."""
        order = np.lexsort((-np.asarray(margins), prompts))  # stable
        grouped = np.asarray(prompts)[order]
        starts = np.searchsorted(grouped, grouped, side="left")
        kept = order[np.arange(len(order)) - starts == self.stage - 1]
        return np.sort(kept).astype(np.int64)

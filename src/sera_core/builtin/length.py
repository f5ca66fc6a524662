"""Scores responses by their length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sera_core.options import require_choice
from sera_core.protocols import Needs
from sera_core.records import Floats, Response, ScoringLogps


@dataclass(frozen=True)
class Length:
    """Number of response tokens, end-of-turn included: the baseline that tells length bias from quality.

    Options: `sign` says which response is better, the ``longer`` or the ``shorter``.

    Raises:
        ConfigError: `sign` is neither word.
    """

    sign: Literal["longer", "shorter"] = "longer"

    def __post_init__(self) -> None:
        require_choice("scorer 'length'", "sign", self.sign, ("longer", "shorter"))

    @property
    def needs(self) -> Needs:
        """Nothing beside the lengths."""
        return Needs()

    def scores(self, responses: Sequence[Response], logps: ScoringLogps) -> Floats:  # noqa: ARG002
        """Token counts float64 [n]; negated for ``shorter``."""
        lengths = logps.lengths.astype(np.float64)
        return lengths if self.sign == "longer" else -lengths

"""Choosing pairs by margin: all, the best, a random share, those above a threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from sera_core.builtin.share import require_share, resolve_share
from sera_core.options import require_number
from sera_core.protocols import Needs
from sera_core.records import Floats


@dataclass(frozen=True)
class All:
    """Keeps every pair."""

    rank_based: ClassVar[bool] = True
    keeps_all: ClassVar[bool] = True

    @property
    def needs(self) -> Needs:
        """Nothing."""
        return Needs()

    def select(self, margins: Floats, pool: int, rng: np.random.Generator) -> NDArray[np.int64]:  # noqa: ARG002
        """0 .. n-1, int64 [n]."""
        return np.arange(len(margins), dtype=np.int64)


@dataclass(frozen=True)
class Top:
    """Keeps the pairs of highest margin, as SeRA does with implicit reward margins.

    Options: exactly one of `fraction` in [0, 1] of the pool, rounded half up, and `count` >= 0; at most what is there.

    Raises:
        ConfigError: both or neither given, or out of range.

    Source: Ko 2024 (SeRA), selection by Eq. 5.
    """

    rank_based: ClassVar[bool] = True

    fraction: float | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        require_share("selector 'top'", self.fraction, self.count)

    @property
    def needs(self) -> Needs:
        """The margins, hence a scorer."""
        return Needs(scores=True)

    @classmethod
    def example(cls) -> Self:
        """A valid setting: SeRA's share of offline pairs."""
        return cls(fraction=0.7)

    def select(self, margins: Floats, pool: int, rng: np.random.Generator) -> NDArray[np.int64]:  # noqa: ARG002
        """Indices of the highest margins, int64 [k], sorted; of equal margins the lower index wins."""
        keep = resolve_share(self.fraction, self.count, pool, len(margins))
        order = np.argsort(-np.asarray(margins), kind="stable")
        return np.sort(order[:keep]).astype(np.int64)


@dataclass(frozen=True)
class Random:
    """Keeps a uniform random share: the control for any selection by margin.

    Options: exactly one of `fraction` in [0, 1] of the pool, rounded half up, and `count` >= 0; at most what is there.

    Raises:
        ConfigError: both or neither given, or out of range.
    """

    rank_based: ClassVar[bool] = True

    fraction: float | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        require_share("selector 'random'", self.fraction, self.count)

    @property
    def needs(self) -> Needs:
        """Nothing."""
        return Needs()

    @classmethod
    def example(cls) -> Self:
        """A valid setting."""
        return cls(fraction=0.7)

    def select(self, margins: Floats, pool: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Indices drawn without replacement, int64 [k], sorted; margins play no part."""
        keep = resolve_share(self.fraction, self.count, pool, len(margins))
        return np.sort(rng.choice(len(margins), size=keep, replace=False)).astype(np.int64)


@dataclass(frozen=True)
class Threshold:
    """Keeps the pairs whose margin reaches a minimum, however many.

    Options: `minimum`, a finite number in the unit of the scorer.

    Raises:
        ConfigError: `minimum` is not a finite number.
    """

    rank_based: ClassVar[bool] = False

    minimum: float

    def __post_init__(self) -> None:
        bound = float(np.finfo(np.float64).max)
        require_number(
            "selector 'threshold'", "minimum", self.minimum, low=-bound, high=bound, expected="a finite number"
        )

    @property
    def needs(self) -> Needs:
        """The margins, hence a scorer."""
        return Needs(scores=True)

    @classmethod
    def example(cls) -> Self:
        """A valid setting: the pairs whose label the scorer agrees with."""
        return cls(minimum=0.0)

    def select(self, margins: Floats, pool: int, rng: np.random.Generator) -> NDArray[np.int64]:  # noqa: ARG002
        """Indices of margins >= minimum, int64 [k], sorted."""
        return np.flatnonzero(np.asarray(margins) >= self.minimum).astype(np.int64)

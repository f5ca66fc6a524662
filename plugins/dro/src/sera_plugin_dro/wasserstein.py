"""The worst case in a Wasserstein ball around the pairs' confidences."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

import torch

import sera_solvers
from sera_core.errors import ConfigError
from sera_core.options import refuse_both, refuse_unread, require_choice, require_flag, require_positive
from sera_core.protocols import Needs
from sera_core.records import BatchStats, Weighted
from sera_plugin_dro.arrays import Metric, failed, normalised, steady, weighted
from sera_plugin_dro.gradients import READINGS
from sera_plugin_dro.schedule import Schedule, radius_at, require_radius

if TYPE_CHECKING:
    from torch import Tensor

_NAME = "reweighter 'wasserstein'"
_RADIUS = 0.05
_PIECES = 16
_SOLVER = "CLARABEL"
_REFRESH = 0.25


@dataclass(frozen=True)
class Wasserstein:
    """Weighs pairs by the worst distribution of confidences within a Wasserstein ball around those of the batch.

    Confidences xi may move on a bounded support at the price of their distance; the adversary moves the smallest to
    its lower end, where -log xi is largest. Hard but learnable pairs weigh more than 1, confident ones 1, those near
    the lower end less. Weights are derived from xi and -log xi whatever the objective: for dpo without smoothing this
    is the worst case of its own loss, for others the same emphasis applied to theirs. A confidence outside the
    support counts as the nearest end; confidences that agree to 2^-16 are ties and share. Radius 0 gives weights of
    exactly 1.

    Options: `radius` >= 0, a number or a `Schedule`, the mean distance that mass may move; 0.05 where neither it nor
    `radius_from` is given. `radius_from` in (0, 1) takes for each batch the radius that its bootstrap resamples keep
    within at this confidence. `support` = (lo, hi), 0 < lo < hi <= 1.

    `method`: ``exact``, a closed form, or ``program``, the finite convex program with `pieces` >= 2 tangents of
    -log xi and an open `solver`. `gradient`: ``envelope`` of the optimal value, ``expectation`` under the worst
    distribution held fixed, or ``literal``, of the sum of -log over its atoms.

    `scope`: ``batch``, or ``dataset``, which weighs all training pairs at once, before the first step and anew every
    `refresh` > 0 epochs, in groups of `group_size` >= 1 pairs (None: ungrouped). Before the first step all margins are
    0 where the policy is its own reference, and all pairs weigh the same until the second measurement: `refresh` must
    be below the number of epochs. `normalise` rescales weights to mean 1.

    Raises:
        ConfigError: a value out of range, an option nothing would read, or a solver that is not installed.

    Source: Mohajerin Esfahani & Kuhn 2018, Theorems 4.2 and 4.4.
    """

    radius: float | Schedule | None = None
    radius_from: float | None = None
    support: tuple[float, float] = (0.01, 1.0)
    method: Literal["exact", "program"] = "exact"
    pieces: int = _PIECES
    solver: str = _SOLVER
    gradient: Literal["envelope", "expectation", "literal"] = "envelope"
    scope: Literal["batch", "dataset"] = "batch"
    group_size: int | None = None
    refresh: float = _REFRESH
    normalise: bool = False

    def __post_init__(self) -> None:
        refuse_both(_NAME, "radius", self.radius, "radius_from", self.radius_from)
        if self.radius_from is None:
            # Written back so that the manifest states the radius that acted.
            object.__setattr__(self, "radius", _RADIUS if self.radius is None else self.radius)
            require_radius(_NAME, self.radius)
        else:
            _require_confidence(self.radius_from)
        object.__setattr__(self, "support", _support(self.support))
        require_choice(_NAME, "gradient", self.gradient, tuple(READINGS))
        require_flag(_NAME, "normalise", self.normalise)
        self._check_method()
        self._check_scope()

    def _check_method(self) -> None:
        require_choice(_NAME, "method", self.method, ("exact", "program"))
        if self.method == "exact":
            refuse_unread(_NAME, "pieces", self.pieces, _PIECES, "method: program")
            refuse_unread(_NAME, "solver", self.solver, _SOLVER, "method: program")
            return
        _require_count("pieces", self.pieces, 2)
        try:
            # Within radius 0 nothing is solved; whether the solver is there is asked first.
            sera_solvers.wasserstein([1.0], 0.0, method="program", solver=self.solver)
        except sera_solvers.InputError as error:
            raise ConfigError(f"{_NAME}: option solver: {error}") from error

    def _check_scope(self) -> None:
        require_choice(_NAME, "scope", self.scope, ("batch", "dataset"))
        if self.scope == "batch":
            refuse_unread(_NAME, "group_size", self.group_size, None, "scope: dataset")
            refuse_unread(_NAME, "refresh", self.refresh, _REFRESH, "scope: dataset")
            return
        require_positive(_NAME, "refresh", self.refresh, typical="0.25, four times an epoch")
        if self.group_size is not None:
            _require_count("group_size", self.group_size, 1)

    @property
    def needs(self) -> Needs:
        """Confidences of the whole effective batch, or of the whole training set every `refresh` epochs."""
        if self.scope == "dataset":
            return Needs(whole_batch=True, dataset_every=self.refresh)
        return Needs(whole_batch=True)

    @classmethod
    def neutral(cls) -> Self:
        """The setting that changes nothing: radius 0."""
        return cls(radius=0.0)

    def weights(self, stats: BatchStats) -> Tensor:
        """Weights [n] >= 0, without gradient; their mean is not 1 unless `normalise`."""
        return self.weigh(stats).weights

    def weigh(self, stats: BatchStats) -> Weighted:
        """Weights [n], and how they came about.

        Metrics: `radius`, `mass_moved` in [0, 1], `dual_price`, `worst_case_loss`, `empirical_loss` (both of -log xi,
        or of the tangents of a program), and where pairs are grouped `grouping_error`, by how much the grouped worst
        case falls short of the ungrouped one.

        Raises:
            ModelError: confidences that are not finite, or a program that the solver does not solve.
        """
        xi = steady(stats.confidences).clamp(*self.support)
        try:
            weights, metrics = self._solve(xi, self._radius(xi, stats.progress))
        except sera_solvers.SolversError as error:
            remedy = "Lower training.learning_rate, or set method: exact." if self.method == "program" else ""
            raise failed(_NAME, error, remedy or "Lower training.learning_rate, or train in float32.") from error
        return weighted(normalised(weights) if self.normalise else weights, stats.confidences, metrics)

    def _radius(self, xi: Tensor, progress: float) -> float | Tensor:
        if self.radius_from is None:
            return radius_at(_RADIUS if self.radius is None else self.radius, progress)
        radius: float | Tensor = sera_solvers.bootstrap_radius(xi, self.radius_from)
        return radius

    def _solve(self, xi: Tensor, radius: float | Tensor) -> tuple[Tensor, dict[str, Metric]]:
        """Weights float64 [n] and metrics for confidences float64 [n] within the support."""
        # Nothing moves within radius 0, and only the closed form returns weights that are 1 to the last bit.
        exact = self.method == "exact" or (not isinstance(radius, torch.Tensor) and radius == 0)
        reading = READINGS[self.gradient]

        def solve(values: Tensor) -> sera_solvers.WorstCase:
            if exact:
                case = sera_solvers.wasserstein(values, radius, support=self.support)
            else:
                case = sera_solvers.wasserstein(
                    values, radius, support=self.support, method="program", pieces=self.pieces, solver=self.solver
                )
            return replace(case, weights=reading(case))

        if self.group_size is None:
            case = solve(xi)
            return case.weights, _metrics(case, radius, case.empirical_value)
        loss: sera_solvers.ConvexLoss | sera_solvers.AffineMax = sera_solvers.NEG_LOG
        if not exact:
            loss = sera_solvers.tangents(loss, self.support, self.pieces)
        # A program over all pairs could be too large; the closed form solves the same one.
        whole = sera_solvers.wasserstein(xi, radius, support=self.support, loss=loss)
        parts = sera_solvers.grouped(solve, xi, self.group_size, whole=whole)
        return parts.weights, _metrics(parts, radius, whole.empirical_value) | {"grouping_error": parts.error}


def _metrics(
    case: sera_solvers.WorstCase | sera_solvers.Grouped, radius: float | Tensor, empirical: float | Tensor
) -> dict[str, Metric]:
    return {
        "radius": radius,
        "mass_moved": case.moved.mean(),
        "dual_price": case.dual_price,
        "worst_case_loss": case.value,
        "empirical_loss": empirical,
    }


def _require_confidence(value: object) -> None:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not 0 < number < 1:
        raise ConfigError(
            f"{_NAME}: option radius_from must be a confidence level, 0 < radius_from < 1, such as 0.9; got {value!r}. "
            "Change radius_from, or set radius instead."
        )


def _require_count(option: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{_NAME}: option {option} must be an integer >= {least}; got {value!r}. Change {option}.")


def _support(value: object) -> tuple[float, float]:
    ends = tuple(value) if isinstance(value, tuple | list) else ()
    numbers = [end for end in ends if isinstance(end, int | float) and not isinstance(end, bool)]
    if len(ends) != 2 or len(numbers) != 2 or not 0 < numbers[0] < numbers[1] <= 1:
        raise ConfigError(
            f"{_NAME}: option support must be two confidences [lo, hi], 0 < lo < hi <= 1 (-log has no value at 0); got "
            f"{value!r}. The default is [0.01, 1.0]."
        )
    return float(numbers[0]), float(numbers[1])

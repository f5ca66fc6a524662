"""Worst cases that keep pairs where they are and change how much each counts; and Dr. DPO, which turns this around."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import sera_solvers
from sera_core.options import refuse_both, require_number, require_positive
from sera_core.protocols import Needs
from sera_core.records import BatchStats, Weighted
from sera_plugin_dro.arrays import Metric, double, failed, steady, weighted
from sera_plugin_dro.schedule import Schedule, radius_at, require_radius

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class KL:
    """Weighs pairs by the worst distribution within a Kullback-Leibler ball: w ~ exp(loss / temperature).

    It up-weights hard pairs, the more the larger their loss; mislabelled pairs are among them. Weights have mean 1.

    Options: `radius`, the ball's size in nats, a finite number >= 0 or a `Schedule`; 0 gives equal weights and
    log n all weight to the hardest pair. Weights then do not depend on the scale of losses; those that agree to 2^-16
    are ties. `temperature` > 0 fixes the exponent instead: small ones are extreme. Neither given means radius 0.1.

    Raises:
        ConfigError: both options, or a value out of range.

    Source: Hu & Hong 2013 (Kullback-Leibler divergence constrained distributionally robust optimization).
    """

    radius: float | Schedule | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        refuse_both("reweighter 'kl'", "radius", self.radius, "temperature", self.temperature)
        if self.temperature is not None:
            require_positive("reweighter 'kl'", "temperature", self.temperature, typical="0.5 to 5")
        else:
            # Written back so that the manifest states the radius that acted.
            object.__setattr__(self, "radius", 0.1 if self.radius is None else self.radius)
            require_radius("reweighter 'kl'", self.radius)

    @property
    def needs(self) -> Needs:
        """Losses of the whole effective batch."""
        return Needs(whole_batch=True)

    @classmethod
    def neutral(cls) -> Self:
        """The setting that changes nothing: radius 0."""
        return cls(radius=0.0)

    def weights(self, stats: BatchStats) -> Tensor:
        """Weights [n] >= 0 of mean 1, without gradient."""
        return self.weigh(stats).weights

    def weigh(self, stats: BatchStats) -> Weighted:
        """Weights [n], with `worst_case_loss` and `empirical_loss`; for a radius also that and its `temperature`.

        An infinite temperature, that of equal weights, is left out.

        Raises:
            ModelError: losses that are not finite.
        """
        if self.radius is None:
            return _weigh("kl", stats, lambda losses: sera_solvers.kl(losses, temperature=self.temperature))
        radius = radius_at(self.radius, stats.progress)
        return _weigh("kl", stats, lambda losses: sera_solvers.kl(losses, radius=radius), "temperature", radius, steady)


@dataclass(frozen=True)
class ChiSquare:
    """Weighs pairs by the worst distribution within a chi-square ball: weights grow linearly with the loss.

    It up-weights hard pairs; while the ball is small, w = 1 + sqrt(radius) (loss - mean) / std, and easy pairs reach
    weight 0 in a larger one. Weights have mean 1, and as long as pairs differ the effective sample size is
    n / (1 + radius). Losses that agree to 2^-16 are ties.

    Options: `radius` >= 0, a number or a `Schedule`: the largest mean of (w - 1)^2; 0 gives equal weights.

    Raises:
        ConfigError: `radius` negative or not finite.

    Source: Namkoong & Duchi 2017 (variance-based regularization with convex objectives).
    """

    radius: float | Schedule = 0.5

    def __post_init__(self) -> None:
        require_radius("reweighter 'chi2'", self.radius)

    @property
    def needs(self) -> Needs:
        """Losses of the whole effective batch."""
        return Needs(whole_batch=True)

    @classmethod
    def neutral(cls) -> Self:
        """The setting that changes nothing: radius 0."""
        return cls(radius=0.0)

    def weights(self, stats: BatchStats) -> Tensor:
        """Weights [n] >= 0 of mean 1, without gradient."""
        return self.weigh(stats).weights

    def weigh(self, stats: BatchStats) -> Weighted:
        """Weights [n], with `radius`, `worst_case_loss`, `empirical_loss` and `dual_price` where that is finite.

        Raises:
            ModelError: losses that are not finite.
        """
        radius = radius_at(self.radius, stats.progress)
        return _weigh(
            "chi2", stats, lambda losses: sera_solvers.chi_square(losses, radius), "dual_price", radius, steady
        )


@dataclass(frozen=True)
class CVaR:
    """Trains on the mean loss of the worst share of pairs: conditional value at risk.

    It up-weights hard pairs: the worst `level` n pairs weigh 1 / level, the others nothing. Weights have mean 1; equal
    losses share.

    Options: `level` in (0, 1], the share of pairs; 1 gives equal weights.

    Raises:
        ConfigError: `level` outside (0, 1].

    Source: Rockafellar & Uryasev 2000 (optimization of conditional value-at-risk).
    """

    level: float = 0.5

    def __post_init__(self) -> None:
        expected = "the share of the worst pairs, 0 < level <= 1 (1: equal weights)"
        require_number("reweighter 'cvar'", "level", self.level, low=math.ulp(0.0), high=1, expected=expected)

    @property
    def needs(self) -> Needs:
        """Losses of the whole effective batch."""
        return Needs(whole_batch=True)

    @classmethod
    def neutral(cls) -> Self:
        """The setting that changes nothing: level 1."""
        return cls(level=1.0)

    def weights(self, stats: BatchStats) -> Tensor:
        """Weights [n] >= 0 of mean 1, without gradient."""
        return self.weigh(stats).weights

    def weigh(self, stats: BatchStats) -> Weighted:
        """Weights [n], with `worst_case_loss`, `empirical_loss` and `dual_price`, what a smaller level would add.

        Raises:
            ModelError: losses that are not finite.
        """
        return _weigh("cvar", stats, lambda losses: sera_solvers.cvar(losses, self.level), "dual_price", read=steady)


@dataclass(frozen=True)
class DrDPO:
    """Weighs pairs by exp(-loss / temperature): Dr. DPO, which trusts the pairs the policy already agrees with.

    It *down*-weights hard pairs, unlike every other reweighter of this plugin: it guards against wrong labels, not
    against the hardest distribution. Weights have mean 1. `worst_case_loss` is its objective,
    -temperature log mean exp(-loss / temperature), which is at most the mean loss.

    Options: `temperature` > 0, the beta' of the paper: smaller ones discard more; null is infinite, equal weights.

    Raises:
        ConfigError: `temperature` not a finite number above 0.

    Source: Wu 2024 (towards robust alignment of language models: distributionally robustifying DPO).
    """

    temperature: float | None = 1.0

    def __post_init__(self) -> None:
        if self.temperature is not None:
            require_positive("reweighter 'dr_dpo'", "temperature", self.temperature, typical="0.5 to 2")

    @property
    def needs(self) -> Needs:
        """Losses of the whole effective batch."""
        return Needs(whole_batch=True)

    @classmethod
    def neutral(cls) -> Self:
        """The setting that changes nothing: an infinite temperature."""
        return cls(temperature=None)

    def weights(self, stats: BatchStats) -> Tensor:
        """Weights [n] >= 0 of mean 1, without gradient."""
        return self.weigh(stats).weights

    def weigh(self, stats: BatchStats) -> Weighted:
        """Weights [n], with `worst_case_loss` and `empirical_loss`.

        Raises:
            ModelError: losses that are not finite.
        """
        temperature = math.inf if self.temperature is None else self.temperature
        return _weigh("dr_dpo", stats, lambda losses: sera_solvers.dr_dpo(losses, temperature))


def _weigh(
    name: str,
    stats: BatchStats,
    solve: Callable[[Tensor], sera_solvers.WorstWeights],
    price: str | None = None,
    radius: float | None = None,
    read: Callable[[Tensor], Tensor] = double,
) -> Weighted:
    """Solve on the losses as `read` gives them; `price` names the metric that the dual price is."""
    try:
        case = solve(read(stats.losses))
    except sera_solvers.SolversError as error:
        raise failed(f"reweighter '{name}'", error, "Lower training.learning_rate, or train in float32.") from error
    metrics: dict[str, Metric] = {} if radius is None else {"radius": radius}
    metrics |= {"worst_case_loss": case.value, "empirical_loss": case.empirical_value}
    if price is not None and math.isfinite(case.dual_price):
        metrics[price] = case.dual_price
    return weighted(case.weights, stats.losses, metrics)

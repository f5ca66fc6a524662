"""Contracts of transforms, smoothers and reweighters."""

from __future__ import annotations

import math
from typing import Any

import torch

from sera_core.errors import ModelError
from sera_core.protocols import Reweighter, Smoother, Transform
from sera_core.records import BatchStats, Smoothed, Weighted
from sera_core.testing import samples
from sera_core.testing.contract import ContractError, Property, example_of, require
from sera_core.train.told import plain_metrics

ORDER = torch.tensor([3, 0, 5, 1, 4, 2])


def _neutral(component: Any) -> Any:  # noqa: ANN401
    factory = type(component)
    require(
        hasattr(factory, "neutral"),
        f"{factory.__name__} needs a classmethod neutral(): the setting that changes nothing",
    )
    neutral = factory.neutral()
    require(isinstance(neutral, factory), f"{factory.__name__}.neutral() returned {neutral!r}")
    return neutral


def _margins() -> torch.Tensor:
    logps = samples.pair_logps(reference=False)
    return (logps.chosen_policy - logps.rejected_policy).requires_grad_()


def _transform_shape(transform: Transform) -> None:
    margins = _margins()
    before = margins.detach().clone()
    changed = transform.apply(margins, samples.pair_batch(transform.needs))
    require(changed.shape == margins.shape, f"expected margins {tuple(margins.shape)}, got {tuple(changed.shape)}")
    require(bool(torch.isfinite(changed).all()), f"margins must stay finite, got {changed}")
    require(torch.equal(margins.detach(), before), "margins were changed in place")


def _transform_neutral(transform: Transform) -> None:
    neutral = _neutral(transform)
    margins = _margins()
    changed = neutral.apply(margins, samples.pair_batch(neutral.needs))
    require(
        torch.equal(changed, margins), f"the neutral setting must return margins unchanged: {margins} became {changed}"
    )


def _transform_gradient(transform: Transform) -> None:
    margins = _margins()
    batch = samples.pair_batch(transform.needs)
    leaves = [batch.logps.chosen_policy, *batch.prefixed.values()]
    for leaf in leaves:
        leaf.requires_grad_()
    changed = transform.apply(margins, batch)
    require(changed.requires_grad, "the gradient of margins must pass through")
    gradient, *others = torch.autograd.grad(changed.sum(), [margins, *leaves], allow_unused=True)
    require(
        gradient is not None and torch.equal(gradient, torch.ones_like(gradient)),
        f"d out / d h must be 1, got {gradient}",
    )
    require(all(other is None or not other.any() for other in others), "the added term must carry no gradient")


def _flip_weights(smoother: Smoother) -> tuple[torch.Tensor, torch.Tensor]:
    confidence = torch.sigmoid(_margins())
    keep, flip = smoother.flip_weights(confidence, samples.pair_batch(smoother.needs))
    return keep, flip


def _smoother_shapes(smoother: Smoother) -> None:
    for name, weight in zip(("keep", "flip"), _flip_weights(smoother), strict=True):
        require(weight.shape == (samples.COUNT,), f"{name} must be [b] = ({samples.COUNT},), got {tuple(weight.shape)}")
        require(bool(torch.isfinite(weight).all()), f"{name} must be finite, got {weight}")


def _smoother_sums_to_one(smoother: Smoother) -> None:
    keep, flip = _flip_weights(smoother)
    require(torch.allclose(keep + flip, torch.ones_like(keep)), f"keep + flip must be 1, got {keep + flip}")


def _smoother_no_gradient(smoother: Smoother) -> None:
    keep, flip = _flip_weights(smoother)
    require(not keep.requires_grad and not flip.requires_grad, "flip weights must carry no gradient")


def _smoother_neutral(smoother: Smoother) -> None:
    keep, flip = _flip_weights(_neutral(smoother))
    require(bool((keep == 1).all() and (flip == 0).all()), f"the neutral setting must give (1, 0), got {keep}, {flip}")


def _shuffled(stats: BatchStats) -> BatchStats:
    return BatchStats(
        margins=stats.margins[ORDER],
        confidences=stats.confidences[ORDER],
        losses=stats.losses[ORDER],
        flipped=stats.flipped[ORDER],
        progress=stats.progress,
    )


def _weights_valid(reweighter: Reweighter) -> None:
    for count in (samples.COUNT, 1):
        weights = reweighter.weights(samples.batch_stats(count))
        require(weights.shape == (count,), f"weights must be [n] = ({count},), got {tuple(weights.shape)}")
        require(bool(torch.isfinite(weights).all()), f"weights must be finite, got {weights}")
        require(bool((weights >= 0).all()), f"weights must be >= 0, got {weights}")


def _weights_no_gradient(reweighter: Reweighter) -> None:
    stats = samples.batch_stats()
    for values in (stats.margins, stats.confidences, stats.losses):
        values.requires_grad_()
    require(not reweighter.weights(stats).requires_grad, "weights must carry no gradient")


def _weights_equivariant(reweighter: Reweighter) -> None:
    stats = samples.batch_stats()
    straight, shuffled = reweighter.weights(stats), reweighter.weights(_shuffled(stats))
    same = torch.allclose(shuffled, straight[ORDER], rtol=1e-5, atol=1e-7)
    require(same, f"weights depend on the order of pairs: {straight[ORDER]} became {shuffled}")


def _weights_neutral(reweighter: Reweighter) -> None:
    weights = _neutral(reweighter).weights(samples.batch_stats())
    require(bool((weights == 1).all()), f"the neutral setting must give ones, got {weights}")


def _weigh_agrees(reweighter: Reweighter) -> None:
    for stats in (samples.batch_stats(), samples.batch_stats(known=True), samples.batch_stats(1)):
        # Two components, in case asking one of them moves its state.
        asked, told = example_of(type(reweighter)), example_of(type(reweighter)).weigh(stats)
        require(isinstance(told, Weighted), f"weigh must return a Weighted, got {told!r}")
        weights = asked.weights(stats)
        require(torch.equal(told.weights, weights), f"weigh gives {told.weights}, weights gives {weights}")


def _weigh_metrics(reweighter: Reweighter) -> None:
    for stats in (samples.batch_stats(), samples.batch_stats(known=True), samples.batch_stats(1)):
        for chosen in (example_of(type(reweighter)), _neutral(reweighter)):
            try:
                plain_metrics(chosen, chosen.weigh(stats).metrics)
            except ModelError as error:
                raise ContractError(str(error)) from error


def _smooth_agrees(smoother: Smoother) -> None:
    confidence, batch = torch.sigmoid(_margins()).detach(), samples.pair_batch(smoother.needs)
    # Two components, in case asking one of them moves its state.
    asked, told = example_of(type(smoother)), example_of(type(smoother)).smooth(confidence, batch)
    require(isinstance(told, Smoothed), f"smooth must return a Smoothed, got {told!r}")
    keep, flip = asked.flip_weights(confidence, batch)
    same = torch.equal(told.keep, keep) and torch.equal(told.flip, flip)
    require(same, f"smooth gives {told.keep} and {told.flip}, flip_weights gives {keep} and {flip}")
    try:
        plain_metrics(smoother, told.metrics)
    except ModelError as error:
        raise ContractError(str(error)) from error


def _says_how_it_smooths(factory: type[Any]) -> bool:
    return hasattr(factory, "smooth")


def _smoother_needs(smoother: Smoother) -> None:
    strength = smoother.needs.extrapolation
    require(0 <= strength < math.inf, f"needs.extrapolation must be 0 or a finite number above it, got {strength}")
    _dataset_interval(smoother)


def _says_how(factory: type[Any]) -> bool:
    return hasattr(factory, "weigh")


def _dataset_interval(component: Smoother | Reweighter) -> None:
    every, begins = component.needs.dataset_every, component.needs.dataset_from
    require(0 <= every < math.inf, f"needs.dataset_every must be 0 or a finite number of epochs above it, got {every}")
    require(0 <= begins <= 1, f"needs.dataset_from must be a share from 0 to 1, got {begins}")


TRANSFORM = (
    Property("keeps-shape", _transform_shape),
    Property("neutral", _transform_neutral),
    Property("no-gradient-of-its-own", _transform_gradient),
)
SMOOTHER = (
    Property("shapes", _smoother_shapes),
    Property("sums-to-one", _smoother_sums_to_one),
    Property("no-gradient", _smoother_no_gradient),
    Property("neutral", _smoother_neutral),
    Property("needs", _smoother_needs),
    Property("smooth-agrees", _smooth_agrees, _says_how_it_smooths),
)
REWEIGHTER = (
    Property("non-negative", _weights_valid),
    Property("no-gradient", _weights_no_gradient),
    Property("permutation-equivariant", _weights_equivariant),
    Property("neutral", _weights_neutral),
    Property("dataset-interval", _dataset_interval),
    Property("weigh-agrees", _weigh_agrees, _says_how),
    Property("weigh-metrics", _weigh_metrics, _says_how),
)

"""Contract of objectives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from sera_core.protocols import Objective
from sera_core.records import PairLogps
from sera_core.testing import samples
from sera_core.testing.contract import Property, require

FIELDS = (
    "chosen_policy",
    "rejected_policy",
    "chosen_length",
    "rejected_length",
    "chosen_reference",
    "rejected_reference",
)
# Off any kink a loss is likely to have, so that finite differences agree with gradients.
SMOOTH = (-3.137, -0.731, 0.217, 1.373, 4.719)


def _logps(objective: Objective, dtype: torch.dtype = torch.float64) -> PairLogps:
    return samples.pair_logps(dtype, reference=objective.needs.reference)


def _pick(logps: PairLogps, index: int) -> PairLogps:
    values: dict[str, Any] = {name: getattr(logps, name) for name in FIELDS}
    return replace(logps, **{name: v[index : index + 1] for name, v in values.items() if v is not None})


def _require_per_pair(values: torch.Tensor, single: list[torch.Tensor], what: str) -> None:
    require(values.shape == (samples.COUNT,), f"{what} must be [b] = ({samples.COUNT},), got {tuple(values.shape)}")
    require(bool(torch.isfinite(values).all()), f"{what} must be finite, got {values}")
    for index, alone in enumerate(single):
        require(alone.shape == (1,), f"{what} of one pair must be [1], got {tuple(alone.shape)}")
        same = torch.allclose(alone[0], values[index], rtol=1e-9, atol=0)
        require(same, f"{what} of pair {index} is {values[index]} in a batch and {alone[0]} alone")


def _margins_per_pair(objective: Objective) -> None:
    logps = _logps(objective)
    single = [objective.margins(_pick(logps, index)) for index in range(samples.COUNT)]
    _require_per_pair(objective.margins(logps), single, "margins")


def _losses_per_pair(objective: Objective) -> None:
    margins = objective.margins(_logps(objective))
    _require_per_pair(objective.losses(margins), [objective.losses(m[None]) for m in margins], "losses")


def _anchor_per_pair(objective: Any) -> None:  # noqa: ANN401
    logps = _logps(objective)
    single = [objective.anchor(_pick(logps, index)) for index in range(samples.COUNT)]
    _require_per_pair(objective.anchor(logps), single, "anchor")


def _antisymmetric(objective: Objective) -> None:
    logps = _logps(objective)
    swapped = PairLogps(
        logps.rejected_policy,
        logps.chosen_policy,
        logps.rejected_length,
        logps.chosen_length,
        logps.rejected_reference,
        logps.chosen_reference,
    )
    straight, other = objective.margins(logps), objective.margins(swapped)
    same = torch.allclose(other, -straight, rtol=1e-9, atol=1e-12)
    require(same, f"swapping chosen and rejected must negate margins: {straight} became {other}")


def _gradcheck(objective: Objective) -> None:
    points = torch.tensor(SMOOTH, dtype=torch.float64, requires_grad=True)
    require(_agrees(objective.losses, points), "the gradient of losses disagrees with finite differences")
    logps = _logps(objective)

    def loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        return objective.losses(objective.margins(replace(logps, chosen_policy=chosen, rejected_policy=rejected)))

    chosen, rejected = logps.chosen_policy.requires_grad_(), logps.rejected_policy.requires_grad_()
    require(_agrees(loss, chosen, rejected), "the gradient through margins disagrees with finite differences")


def _agrees(function: Any, *inputs: torch.Tensor) -> bool:  # noqa: ANN401
    if not function(*inputs).requires_grad:
        return False
    return bool(torch.autograd.gradcheck(function, inputs, raise_exception=False))


def _finite_at_extremes(objective: Objective) -> None:
    margins = torch.tensor([-1e4, -1e3, -50.0, 0.0, 50.0, 1e3, 1e4], dtype=torch.float32, requires_grad=True)
    losses = objective.losses(margins)
    require(bool(torch.isfinite(losses).all()), f"losses must be finite for |h| up to 1e4, got {losses}")
    (gradient,) = torch.autograd.grad(losses.sum(), margins)
    require(bool(torch.isfinite(gradient).all()), f"gradients must be finite for |h| up to 1e4, got {gradient}")
    confidence = objective.confidence(margins)
    require(bool(torch.isfinite(confidence).all()), f"confidence must be finite for |h| up to 1e4, got {confidence}")


def _confidence(objective: Objective) -> None:
    margins = torch.tensor([-1e4, -10.0, -1.0, -0.1, 0.0, 0.1, 1.0, 10.0, 1e4], dtype=torch.float64)
    confidence = objective.confidence(margins)
    require(confidence.shape == margins.shape, f"confidence must be [b], got {tuple(confidence.shape)}")
    require(bool(((confidence >= 0) & (confidence <= 1)).all()), f"confidence must lie in [0, 1], got {confidence}")
    require(bool((confidence.diff() >= 0).all()), f"confidence must not decrease in h, got {confidence}")
    require(bool(confidence[2] < confidence[6]), f"confidence must increase between h = -1 and 1, got {confidence}")


def _leaves_inputs_alone(objective: Objective) -> None:
    logps, before = _logps(objective), _logps(objective)
    margins = objective.margins(logps)
    copy = margins.clone()
    objective.losses(margins)
    objective.confidence(margins)
    require(torch.equal(margins, copy), "margins were changed in place")
    for name in FIELDS:
        now, was = getattr(logps, name), getattr(before, name)
        require(was is None or torch.equal(now, was), f"{name} was changed in place")


OBJECTIVE = (
    Property("margins-per-pair", _margins_per_pair),
    Property("margins-antisymmetric", _antisymmetric),
    Property("losses-per-pair", _losses_per_pair),
    Property("gradcheck", _gradcheck),
    Property("finite-at-extremes", _finite_at_extremes),
    Property("confidence", _confidence),
    Property("leaves-inputs-alone", _leaves_inputs_alone),
    Property("anchor-per-pair", _anchor_per_pair, lambda factory: hasattr(factory, "anchor")),
)

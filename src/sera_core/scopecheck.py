"""Refusals at plan time that concern measurements of the whole training set."""

from __future__ import annotations

import math

from sera_core.errors import ConfigError
from sera_core.plan import IterationPlan, Plan
from sera_core.protocols import Component

# Intervals and shares such as 0.2 are no binary fractions.
_ROUNDING = 1e-9


def check_who_measures(plan: Plan, step: IterationPlan) -> None:
    """Raise ConfigError where anything but a reweighter or smoother asks for the whole training set to be measured."""
    parts, offline, generated = step.objective, step.offline, step.generated
    others: list[tuple[str, Component | None]] = [
        ("source", plan.source),
        ("evaluation.judge", plan.judge),
        ("evaluation.generator", plan.evaluation_generator),
        ("objective.loss", parts.loss),
        *(("objective.transforms", transform) for transform in parts.transforms),
    ]
    if offline is not None:
        others += [("offline.scorer", offline.scorer), ("offline.selector", offline.selector)]
    if generated is not None:
        names = ("generator", "scorer", "judge", "labeler", "selector")
        others += [(f"generated.{name}", getattr(generated, name)) for name in names]
    for where, component in others:
        if component is not None and component.needs.dataset_every:
            raise ConfigError(
                f"{where}: {type(component).__name__} asks for measurements of the whole training set every "
                f"{component.needs.dataset_every:g} epochs, which only reweighters and smoothers get. Choose another."
            )


def check_measurements(step: IterationPlan, epochs: float) -> None:
    """Raise ConfigError where nothing that is measured in `epochs` of training could ever change anything.

    A component measures before the first step and every `Needs.dataset_every` epochs. It may use no measurement before
    the share `Needs.dataset_from` of the steps, and the first one tells nothing of a policy that is its own reference.
    """
    parts, loop, names = step.objective, step.config.loop, step.config.objective
    own_reference = parts.loss.needs.reference and (step.iteration == 1 or loop.start == loop.reference)
    asked = (("smoother", names.smoother, parts.smoother), ("reweighter", names.reweighter, parts.reweighter))
    for role, spec, part in asked:
        every, begins = part.needs.dataset_every, part.needs.dataset_from
        if not every or begins >= 1:
            continue
        later = math.ceil(epochs / every - _ROUNDING) - 1
        measures = f"objective.{role}: '{spec.name}' measures the training set every {every:g} epochs"
        given = f"iteration {step.iteration} has training.num_train_epochs = {epochs:g}"
        if later < 1 and own_reference:
            raise ConfigError(
                f"{measures}, but {given}: it would be measured only once, before the first step, when every margin is "
                "still 0. Measure more often (refresh), or train for more epochs."
            )
        last = max(later, 0) * every / epochs
        if last < begins - _ROUNDING:
            raise ConfigError(
                f"{measures} and acts on none before the share {begins:g} of the steps, but {given}: the last one "
                f"comes at {last:g}, so it would never act. Measure more often (refresh), begin earlier (warmup), or "
                "train for more epochs."
            )

"""What the components of an algebra ask of training, checked before anything is computed."""

from __future__ import annotations

import math

from sera_core.errors import ConfigError
from sera_core.train.step import Algebra


def check_needs(algebra: Algebra, has_reference: bool) -> None:
    """Raise ConfigError when a component asks for something training does not compute, or the reference is amiss."""
    parts = {"objective": algebra.objective, "smoother": algebra.smoother, "reweighter": algebra.reweighter}
    parts |= {f"transform {i}": transform for i, transform in enumerate(algebra.transforms)}
    for role, component in parts.items():
        name = type(component).__name__
        for what, asks, answered in (
            ("an extrapolated policy", component.needs.extrapolation, role == "smoother"),
            ("margins under prompt prefixes", component.needs.prefixes, role.startswith("transform")),
        ):
            if asks and not answered:
                raise ConfigError(f"The {role} {name} asks for {what}, which it does not get. Choose another one.")
        if not 0 <= component.needs.extrapolation < math.inf:
            raise ConfigError(
                f"The {role} {name} asks for the extrapolation {component.needs.extrapolation:g}, which must be "
                "finite and not negative."
            )
        if component.needs.extrapolation and not algebra.objective.needs.reference:
            raise ConfigError(f"The {role} {name} extrapolates away from a reference, and the objective has none.")
        if component.needs.reference and not has_reference:
            raise ConfigError(f"The {role} {name} needs reference log-probs, and none were given.")
        every = component.needs.dataset_every
        if every and (role not in {"reweighter", "smoother"} or not 0 < every < math.inf):
            raise ConfigError(
                f"The {role} {name} asks for measurements of the training set every {every:g} epochs. Only a "
                "reweighter or smoother may, and with a finite number above 0. Choose another one."
            )
    if has_reference and not any(component.needs.reference for component in parts.values()):
        raise ConfigError(
            f"Reference log-probs were given, but no component uses them ({type(algebra.objective).__name__} has no "
            "reference). Leave them out."
        )

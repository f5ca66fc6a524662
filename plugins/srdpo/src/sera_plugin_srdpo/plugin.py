"""Registers the self-refinement transform."""

from __future__ import annotations

from collections.abc import Mapping

from sera_core.hookspecs import hookimpl
from sera_core.protocols import Transform
from sera_plugin_srdpo.transform import SelfRefinement


@hookimpl
def sera_register_transforms() -> Mapping[str, type[Transform]]:
    """Sr-DPO's margin transform."""
    return {"self_refinement": SelfRefinement}

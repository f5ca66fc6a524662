"""Registers the irm scorer."""

from __future__ import annotations

from collections.abc import Mapping

from sera_core.hookspecs import hookimpl
from sera_core.protocols import Scorer
from sera_plugin_irm.scorer import ImplicitRewardMargin


@hookimpl
def sera_register_scorers() -> Mapping[str, type[Scorer]]:
    """The implicit reward of trained iterates."""
    return {"irm": ImplicitRewardMargin}

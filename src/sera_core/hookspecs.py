"""Hook specifications: what a plugin may implement. Signatures and docstrings only.

Registration hooks take nothing, run once at start-up and return a mapping from the name used in configurations to a
factory: a frozen dataclass whose fields are the component's options. Observers get one frozen record and return
nothing. Loading order never matters: a name registered twice is an error.
"""

from __future__ import annotations

from collections.abc import Mapping

import pluggy

from sera_core.protocols import (
    Generator,
    Judge,
    Labeler,
    Objective,
    Reweighter,
    Scorer,
    Selector,
    Smoother,
    Source,
    Transform,
)
from sera_core.records import IterationReport, StepRecord

PROJECT = "sera_core"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def sera_register_scorers() -> Mapping[str, type[Scorer]]:
    """Scorers by name. All results are collected."""


@hookspec
def sera_register_selectors() -> Mapping[str, type[Selector]]:
    """Selectors by name. All results are collected."""


@hookspec
def sera_register_labelers() -> Mapping[str, type[Labeler]]:
    """Labelers by name. All results are collected."""


@hookspec
def sera_register_objectives() -> Mapping[str, type[Objective]]:
    """Objectives by name. All results are collected."""


@hookspec
def sera_register_transforms() -> Mapping[str, type[Transform]]:
    """Margin transforms by name. All results are collected."""


@hookspec
def sera_register_smoothers() -> Mapping[str, type[Smoother]]:
    """Label smoothers by name. All results are collected."""


@hookspec
def sera_register_reweighters() -> Mapping[str, type[Reweighter]]:
    """Reweighters by name. All results are collected."""


@hookspec
def sera_register_generators() -> Mapping[str, type[Generator]]:
    """Generators by name. All results are collected."""


@hookspec
def sera_register_judges() -> Mapping[str, type[Judge]]:
    """Judges by name. All results are collected."""


@hookspec
def sera_register_sources() -> Mapping[str, type[Source]]:
    """Sources by name. All results are collected."""


@hookspec
def sera_step_finished(record: StepRecord) -> None:
    """Called after each optimiser step on the main process, with that step's metrics."""


@hookspec
def sera_iteration_finished(report: IterationReport) -> None:
    """Called after each iteration's report is written."""

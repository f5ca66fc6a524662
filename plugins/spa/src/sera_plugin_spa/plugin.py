"""Registers direct judgment, as a scorer and a labeler, and the smoothers that refine its labels."""

from __future__ import annotations

from collections.abc import Mapping

from sera_core.hookspecs import hookimpl
from sera_core.protocols import Labeler, Scorer, Smoother
from sera_plugin_spa.labeler import DirectJudgmentLabels
from sera_plugin_spa.official import OfficialCodeRefinement
from sera_plugin_spa.refinement import SelfRefinement
from sera_plugin_spa.scorer import DirectJudgment


@hookimpl
def sera_register_scorers() -> Mapping[str, type[Scorer]]:
    """The implicit reward by which the policy judges its own samples."""
    return {"direct_judgment": DirectJudgment}


@hookimpl
def sera_register_labelers() -> Mapping[str, type[Labeler]]:
    """Pairs that remember how sure the judgment was."""
    return {"direct_judgment": DirectJudgmentLabels}


@hookimpl
def sera_register_smoothers() -> Mapping[str, type[Smoother]]:
    """Smoothing of the least confident labels: the paper's and the released code's."""
    return {"spa": SelfRefinement, "spa_official_code": OfficialCodeRefinement}

"""Spread preference annotation for sera-core."""

from sera_plugin_spa.labeler import DirectJudgmentLabels
from sera_plugin_spa.official import OfficialCodeRefinement
from sera_plugin_spa.refinement import SelfRefinement
from sera_plugin_spa.scorer import DirectJudgment

__all__ = ["DirectJudgment", "DirectJudgmentLabels", "OfficialCodeRefinement", "SelfRefinement"]

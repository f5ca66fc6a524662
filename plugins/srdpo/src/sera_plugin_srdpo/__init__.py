"""Quality-aware self-refinement of preference margins for sera-core."""

from sera_plugin_srdpo.transform import PREFIX, SelfRefinement

__all__ = ["PREFIX", "SelfRefinement"]

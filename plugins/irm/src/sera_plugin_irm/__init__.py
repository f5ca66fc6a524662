"""SeRA's implicit reward margin as a scorer for sera-core."""

from sera_plugin_irm.scorer import ImplicitRewardMargin

__all__ = ["ImplicitRewardMargin"]

"""Worst-case reweighting of preference pairs for sera-core."""

from sera_plugin_dro.discrete import WassersteinDiscrete
from sera_plugin_dro.divergences import KL, ChiSquare, CVaR, DrDPO
from sera_plugin_dro.label_flip import LabelFlip
from sera_plugin_dro.schedule import Schedule
from sera_plugin_dro.wasserstein import Wasserstein

__all__ = ["KL", "CVaR", "ChiSquare", "DrDPO", "LabelFlip", "Schedule", "Wasserstein", "WassersteinDiscrete"]

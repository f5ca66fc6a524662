"""Registers the worst-case reweighters and the label-flip smoother."""

from __future__ import annotations

from collections.abc import Mapping

from sera_core.hookspecs import hookimpl
from sera_core.protocols import Reweighter, Smoother
from sera_plugin_dro.discrete import WassersteinDiscrete
from sera_plugin_dro.divergences import KL, ChiSquare, CVaR, DrDPO
from sera_plugin_dro.label_flip import LabelFlip
from sera_plugin_dro.wasserstein import Wasserstein


@hookimpl
def sera_register_reweighters() -> Mapping[str, type[Reweighter]]:
    """Weights of worst-case distributions, and Dr. DPO's."""
    return {
        "wasserstein": Wasserstein,
        "kl": KL,
        "chi2": ChiSquare,
        "cvar": CVaR,
        "dr_dpo": DrDPO,
        "wasserstein_discrete": WassersteinDiscrete,
    }


@hookimpl
def sera_register_smoothers() -> Mapping[str, type[Smoother]]:
    """Worst-case label flips."""
    return {"label_flip": LabelFlip}

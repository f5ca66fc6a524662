"""Worst-case distributions of a sample: closed forms and finite convex programs, with certificates."""

from sera_solvers.ambiguity import chi_square, cvar, dr_dpo, kl
from sera_solvers.calibration import bootstrap_radius
from sera_solvers.discrete import wasserstein_discrete
from sera_solvers.errors import InputError, SolveError, SolversError
from sera_solvers.flips import FlipCase, label_flip
from sera_solvers.grouping import Grouped, grouped
from sera_solvers.losses import NEG_LOG, AffineMax, ConvexLoss, tangent_gap, tangents
from sera_solvers.result import WorstCase, WorstWeights
from sera_solvers.wasserstein import wasserstein

__all__ = [
    "NEG_LOG",
    "AffineMax",
    "ConvexLoss",
    "FlipCase",
    "Grouped",
    "InputError",
    "SolveError",
    "SolversError",
    "WorstCase",
    "WorstWeights",
    "bootstrap_radius",
    "chi_square",
    "cvar",
    "dr_dpo",
    "grouped",
    "kl",
    "label_flip",
    "tangent_gap",
    "tangents",
    "wasserstein",
    "wasserstein_discrete",
]

"""Registers the built-in components. Implementations are imported when a hook asks for them, not before."""

from __future__ import annotations

from collections.abc import Mapping

from sera_core.hookspecs import hookimpl
from sera_core.protocols import Generator, Judge, Labeler, Objective, Reweighter, Scorer, Selector, Smoother, Source


@hookimpl
def sera_register_scorers() -> Mapping[str, type[Scorer]]:
    """Scores that need no ensemble: length, annotations, the initial policy's log-probs."""
    from sera_core.builtin.annotated import Annotated
    from sera_core.builtin.length import Length
    from sera_core.builtin.reference_gap import ReferenceGap

    return {"length": Length, "annotated": Annotated, "reference_gap": ReferenceGap}


@hookimpl
def sera_register_selectors() -> Mapping[str, type[Selector]]:
    """All pairs, the best, a random share, those above a threshold, one of each prompt."""
    from sera_core.builtin.curriculum import Curriculum
    from sera_core.builtin.selectors import All, Random, Threshold, Top

    return {"all": All, "curriculum": Curriculum, "top": Top, "random": Random, "threshold": Threshold}


@hookimpl
def sera_register_labelers() -> Mapping[str, type[Labeler]]:
    """Pairs from several responses to one prompt."""
    from sera_core.builtin.best_worst import BestWorst
    from sera_core.builtin.target_first import TargetFirst

    return {"best_worst": BestWorst, "target_first": TargetFirst}


@hookimpl
def sera_register_objectives() -> Mapping[str, type[Objective]]:
    """Preference losses."""
    from sera_core.builtin.dpo import DPO
    from sera_core.builtin.hinge import Hinge
    from sera_core.builtin.ipo import IPO
    from sera_core.builtin.orpo import ORPO
    from sera_core.builtin.simpo import SimPO

    return {"dpo": DPO, "ipo": IPO, "hinge": Hinge, "simpo": SimPO, "orpo": ORPO}


@hookimpl
def sera_register_smoothers() -> Mapping[str, type[Smoother]]:
    """Label smoothing at a constant rate."""
    from sera_core.builtin.smoothers import Constant, NoSmoothing, Unbiased

    return {"none": NoSmoothing, "constant": Constant, "unbiased": Unbiased}


@hookimpl
def sera_register_reweighters() -> Mapping[str, type[Reweighter]]:
    """Equal weights."""
    from sera_core.builtin.uniform import Uniform

    return {"uniform": Uniform}


@hookimpl
def sera_register_generators() -> Mapping[str, type[Generator]]:
    """Sampling with transformers, or with vLLM where it is installed."""
    from sera_core.models.generate.hf import Transformers
    from sera_core.models.generate.vllm import VLLM

    return {"transformers": Transformers, "vllm": VLLM}


@hookimpl
def sera_register_judges() -> Mapping[str, type[Judge]]:
    """The judge that knows the right answers, and judges that ask a model."""
    from sera_core.builtin.llm_grades import LlmGrades
    from sera_core.builtin.llm_judge import LlmJudge
    from sera_core.builtin.reward_model import RewardModel
    from sera_core.world.gold import Gold

    return {"gold": Gold, "llm_judge": LlmJudge, "llm_grades": LlmGrades, "reward_model": RewardModel}


@hookimpl
def sera_register_sources() -> Mapping[str, type[Source]]:
    """The built-in world, and preference data from disk or hub."""
    from sera_core.data.preferences import Preferences
    from sera_core.world.source import World

    return {"world": World, "preferences": Preferences}

"""Refusals at plan time that concern judges: of evaluation, and of the samples to train on."""

from __future__ import annotations

from sera_core.errors import ConfigError
from sera_core.plan import IterationPlan, Plan
from sera_core.protocols import AsksModel, SelectsByPrompt


def check_evaluation_judge(plan: Plan) -> None:
    """Raise ConfigError for a judge that the source cannot serve, or that is no fixed yardstick."""
    judge = plan.judge
    if judge is None:
        return
    if judge.needs.gold and not plan.source.provides.gold:
        raise ConfigError(
            f"evaluation.judge needs gold answers, which source '{plan.config.source.name}' does not have. "
            "Choose another judge, or evaluation.judge=null."
        )
    if isinstance(judge, AsksModel) and judge.model == "policy":
        raise ConfigError(
            f"evaluation.judge '{plan.judge_name}' asks the policy itself, so the yardstick would move with every "
            "iteration. Set evaluation.judge.model to initial, a folder or a hub name."
        )


def check_generated_scores(plan: Plan, step: IterationPlan) -> None:
    """Raise ConfigError unless generated samples are scored in exactly one way where scores are read, else in none."""
    settings, built = step.config.generated, step.generated
    if settings is None or built is None:
        return
    labeler_reads, selector_reads = built.labeler.needs.scores, built.selector.needs.scores
    reader = f"labeler '{settings.labeler.name}'" if labeler_reads else f"selector '{settings.selector.name}'"
    given = [name for name in ("scorer", "judge") if getattr(settings, name) is not None]
    if not (labeler_reads or selector_reads):
        for name in given:
            raise ConfigError(f"generated.{name} is set, but {reader} reads no scores: it would be ignored. Remove it.")
    elif not given:
        raise ConfigError(
            f"generated.scorer is missing: {reader} reads scores. Set generated.scorer, or generated.judge."
        )
    if len(given) > 1:
        raise ConfigError(
            f"generated.scorer = {settings.scorer and settings.scorer.name} and generated.judge = "
            f"{settings.judge and settings.judge.name} would both score the samples. Remove one of them."
        )
    if built.judge is not None and built.judge.needs.gold and not plan.source.provides.gold:
        raise ConfigError(
            f"generated.judge '{built.judge_name}' needs gold answers, which source '{plan.config.source.name}' does "
            "not have. Choose another judge, such as llm_judge or reward_model."
        )
    if isinstance(built.selector, SelectsByPrompt):
        raise ConfigError(
            f"generated.selector '{settings.selector.name}' compares the pairs of one prompt, and a labeler makes one "
            "pair of a prompt. Choose another selector; this one is for offline pairs."
        )

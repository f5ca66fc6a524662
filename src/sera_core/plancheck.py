"""Refusals at plan time: combinations that cannot be honoured and options nothing would read."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sera_core.errors import ConfigError, suggest
from sera_core.judgecheck import check_evaluation_judge, check_generated_scores
from sera_core.plan import IterationPlan, Plan
from sera_core.protocols import MayBeMissing, Needs, Scorer
from sera_core.scopecheck import check_measurements, check_who_measures


def check_plan(plan: Plan) -> None:
    """Raise ConfigError for the first thing in the plan that could not be honoured, naming the option and a remedy."""
    _check_source(plan)
    _check_base(plan)
    _check_loop(plan)
    check_evaluation_judge(plan)
    _check_generators(plan)
    _check_prefixes(plan)
    for step in plan.iterations:
        _check_pairs_exist(step)
        _check_offline(plan, step)
        _check_generated(plan, step)
        _check_objective(step)
        check_who_measures(plan, step)
    _check_training(plan)


def _check_source(plan: Plan) -> None:
    if plan.config.tokens.truncation == "drop" and "prompt_side" in _section(plan.user, "tokens"):
        raise ConfigError("tokens.prompt_side is set, but tokens.truncation = drop cuts no prompt. Remove it.")
    policy = plan.config.policy
    if policy.model == "auto" and not plan.source.provides.policy:
        raise ConfigError(
            f"policy.model is 'auto', but source '{plan.config.source.name}' brings no policy. "
            "Set policy.model to a local folder, a hub name, or smollm2-135m."
        )
    if policy.model == "auto" and policy.revision is not None:
        raise ConfigError("policy.revision is set, but policy.model is 'auto', which has no revisions. Remove it.")
    if policy.lora is not None and find_spec("peft") is None:
        raise ConfigError("policy.lora needs the package peft: pip install 'sera-core[peft]'.")


def _check_generators(plan: Plan) -> None:
    used = [("evaluation.generator", plan.evaluation_generator)]
    used += [("generated.generator", step.generated.generator) for step in plan.iterations if step.generated]
    for where, generator in used:
        problem = generator.unavailable() if isinstance(generator, MayBeMissing) else None
        if problem is not None:
            raise ConfigError(f"{where}: {problem}")


def _check_base(plan: Plan) -> None:
    policy = plan.config.policy
    if policy.base is None:
        return
    if policy.base == "auto" and not plan.source.provides.policy:
        raise ConfigError(
            f"policy.base is 'auto', but source '{plan.config.source.name}' brings no policy. "
            "Set policy.base to the local folder or hub name of what policy.model was tuned from."
        )
    if policy.base == policy.model and policy.revision is None:
        raise ConfigError(
            f"policy.base and policy.model are both '{policy.base}', so every implicit reward would be 0. "
            "Set policy.model to a model that was tuned from policy.base."
        )
    # At iteration t there are t - 1 iterates beside the initial policy, which comes last.
    reads = any(
        scorer.needs.initial or scorer.needs.history >= step.iteration
        for step in plan.iterations
        for scorer in _acting_scorers(step)
    )
    if not reads:
        raise ConfigError(
            "policy.base is set, but no scorer reads the initial policy, nor trained iterates in iteration 1. "
            "Remove it, or let such a scorer act from iteration 1 on."
        )


def _check_loop(plan: Plan) -> None:
    loop, user = plan.config.loop, _section(plan.user, "loop")
    if loop.stop is not None and loop.stop.patience >= loop.iterations:
        raise ConfigError(
            f"loop.stop.patience = {loop.stop.patience} can never act within loop.iterations = {loop.iterations}. "
            "Lower the patience, raise the iterations, or remove loop.stop."
        )
    if loop.stop is not None and loop.stop.metric != "accuracy" and plan.judge is None:
        raise ConfigError(f"loop.stop.metric = {loop.stop.metric} needs a judge, and evaluation.judge gives none.")
    if loop.stop is not None and loop.stop.metric == "gold_reward" and plan.judge and not plan.judge.needs.gold:
        raise ConfigError("loop.stop.metric = gold_reward needs a gold judge. Use win_rate_vs_initial or accuracy.")
    reads_reference = any(
        part.needs.reference for step in plan.iterations for part in (step.objective.loss, *_scorers(step))
    )
    if user.get("reference") is not None and not reads_reference:
        raise ConfigError(
            f"loop.reference is set, but objective '{plan.config.objective.loss.name}' is reference-free and no scorer "
            "reads a reference. Remove it, or set loop.reference=null where a preset has it."
        )
    for key in ("start", "reference"):
        if user.get(key) is not None and loop.iterations == 1:
            raise ConfigError(
                f"loop.{key} = {user[key]} has no meaning with loop.iterations = 1: previous and initial policy are "
                f"the same. Remove it, or set loop.{key}=null where a preset has it."
            )


def _check_prefixes(plan: Plan) -> None:
    prefixes = plan.config.evaluation.prefixes
    for prefix in prefixes:
        if not prefix.replace("{prompt}", "").strip() or prefix.count("{prompt}") > 1:
            raise ConfigError(
                f"evaluation.prefixes holds {prefix!r}. Give a text to stand before the prompt, or a template with "
                "one {prompt} in it."
            )
        if prefixes.count(prefix) > 1:
            raise ConfigError(f"evaluation.prefixes holds {prefix!r} twice. Keep one of them.")


def _check_pairs_exist(step: IterationPlan) -> None:
    if step.offline is None and step.generated is None:
        raise ConfigError(
            f"Iteration {step.iteration} would have no pairs: offline is null and generated "
            "starts later or is null. Set one of them, or generated.from_iteration=1."
        )


def _check_offline(plan: Plan, step: IterationPlan) -> None:
    settings = step.config.offline
    if step.offline is None or settings is None:
        return
    if settings.select_from > plan.config.loop.iterations:
        raise ConfigError(
            f"offline.select_from = {settings.select_from} lies beyond loop.iterations = "
            f"{plan.config.loop.iterations}: the selector would never act."
        )
    if settings.select_from > 1 and getattr(step.offline.selector, "keeps_all", False):
        raise ConfigError(
            f"offline.select_from = {settings.select_from} has no effect: selector '{settings.selector.name}' keeps "
            "all pairs anyway. Remove it."
        )
    reads = step.offline.selector.needs.scores
    _check_offline_scorer(settings.scorer is not None, reads, f"selector '{settings.selector.name}'")
    if step.offline.acts and step.offline.scorer is not None:
        _check_scorer_needs(plan, step, step.offline.scorer, "offline", "offline.select_from=2")


def _check_generated(plan: Plan, step: IterationPlan) -> None:
    settings = step.config.generated
    if settings is None:
        return
    if settings.from_iteration > plan.config.loop.iterations:
        raise ConfigError(
            f"generated.from_iteration = {settings.from_iteration} lies beyond loop.iterations = "
            f"{plan.config.loop.iterations}: nothing would ever be generated."
        )
    if step.generated is None:
        return
    known = ("auto", "offline", *plan.source.provides.prompts)
    if settings.prompts not in known:
        raise ConfigError(
            f"generated.prompts = '{settings.prompts}': source '{plan.config.source.name}' has no such prompts. "
            f"{suggest(settings.prompts, known)}"
        )
    if settings.disjoint and settings.from_iteration == plan.config.loop.iterations:
        raise ConfigError(
            "generated.disjoint has no effect: only one iteration generates. Set generated.disjoint=false."
        )
    labeler = step.generated.labeler.needs
    if labeler.targets and settings.prompts != "sft":
        raise ConfigError(
            f"labeler '{settings.labeler.name}' needs prompts that carry a reference answer: set generated.prompts=sft."
        )
    check_generated_scores(plan, step)
    if step.generated.scorer is not None:
        if step.generated.scorer.needs.annotations:
            raise ConfigError(
                f"generated.scorer '{settings.scorer and settings.scorer.name}' reads annotated scores, which the "
                "policy's own samples do not have. Choose another scorer for generated."
            )
        _check_scorer_needs(plan, step, step.generated.scorer, "generated", "generated.from_iteration=2")
    if labeler.scores and settings.samples < 2:
        raise ConfigError(
            f"generated.samples = {settings.samples}: labeler '{settings.labeler.name}' needs at least 2."
        )


def _check_offline_scorer(given: bool, read: bool, reader: str) -> None:
    if read and not given:
        raise ConfigError(f"offline.scorer is missing: {reader} reads scores. Set offline.scorer.")
    if given and not read:
        raise ConfigError(f"offline.scorer is set, but {reader} reads no scores: it would be ignored. Remove it.")


def _check_scorer_needs(plan: Plan, step: IterationPlan, scorer: Scorer, section: str, remedy: str) -> None:
    if scorer.needs.history and step.iteration == 1 and plan.config.policy.base is None:
        raise ConfigError(
            f"{section}.scorer reads trained iterates, and before iteration 1 there are none. Set {remedy}, or "
            "policy.base to what the policy was tuned from."
        )
    # The scorer at iteration t reads iterates t-1, t-2, ...: their objectives decide whether a reference exists.
    read = plan.iterations[max(0, step.iteration - 1 - scorer.needs.history) : step.iteration - 1]
    free = next((each for each in read if not each.objective.loss.needs.reference), None)
    if scorer.needs.reference and free is not None:
        raise ConfigError(
            f"{section}.scorer compares each iterate with the reference it was trained against, but objective "
            f"'{free.config.objective.loss.name}' is reference-free. Use a reference-free reward "
            "(irm: reward=length_normalised) or another objective."
        )


def _check_objective(step: IterationPlan) -> None:
    parts, loss = step.objective, step.config.objective.loss.name
    asked: tuple[tuple[str, Needs], ...] = (
        *(("objective.transforms", transform.needs) for transform in parts.transforms),
        ("objective.smoother", parts.smoother.needs),
        ("objective.reweighter", parts.reweighter.needs),
    )
    for where, needs in asked:
        if needs.prefixes and where != "objective.transforms":
            raise ConfigError(f"{where} asks for margins under a prompt prefix, which only a transform gets.")
        if needs.extrapolation and where != "objective.smoother":
            raise ConfigError(f"{where} asks for an extrapolated policy, which only a smoother gets.")
        if needs.extrapolation and not parts.loss.needs.reference:
            raise ConfigError(
                f"{where} '{step.config.objective.smoother.name}' reads token logits extrapolated away from the "
                f"reference, but objective '{loss}' has no reference. Set its extrapolation to 0, or choose another "
                "objective."
            )
        if needs.reference and not parts.loss.needs.reference:
            raise ConfigError(f"{where} needs a reference, but objective '{loss}' has none.")


def _check_training(plan: Plan) -> None:
    from sera_core.train.arguments import build_arguments  # imports transformers: only once all else is right
    from sera_core.train.precision import check_precision

    for step in plan.iterations:
        args = build_arguments(step.config.training, output_dir=Path("unused"), seed=step.config.seed)
        check_precision(step.config.policy.dtype, step.config.training)
        if args.max_steps <= 0:
            check_measurements(step, args.num_train_epochs)


def _scorers(step: IterationPlan) -> list[Scorer]:
    parts = (step.offline, step.generated)
    return [part.scorer for part in parts if part is not None and part.scorer is not None]


def _acting_scorers(step: IterationPlan) -> list[Scorer]:
    offline = None if step.offline is None or not step.offline.acts else step.offline
    return [part.scorer for part in (offline, step.generated) if part is not None and part.scorer is not None]


def _section(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = raw.get(key)
    return value if isinstance(value, dict) else {}

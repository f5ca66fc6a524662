"""Samples of a policy as a stage: for curation and for evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sera_core.context import Context, Policy, prompts_key, sampling_key
from sera_core.curate.label import with_targets
from sera_core.curate.prompts import AnyPrompt, named_prompts, offline_prompts, prompt_set, share_of_round
from sera_core.data.tables import read_candidates, write_candidates
from sera_core.data.targets import tokenize_targets
from sera_core.data.tokens import banned_ids, tokenize_prompts
from sera_core.plan import IterationPlan
from sera_core.prepare import limits_of
from sera_core.protocols import Generator, Progress, Sampling
from sera_core.records import Candidates, Prompt, Response
from sera_core.workspace import Stage


def generate(
    run: Context,
    policy: Policy,
    prompts: tuple[Prompt, ...],
    generator: tuple[str, Generator],
    sampling: Sampling,
    *,
    where: str,
    iteration: int,
    purpose: str,
) -> tuple[Candidates, Stage]:
    """Samples of a policy, as a stage. Evaluation uses it too."""

    def compute(folder: Path, progress: Progress) -> None:
        context = run.generation(policy, iteration, purpose, progress)
        write_candidates(folder / "candidates.arrow", generator[1].generate(policy.path, prompts, sampling, context))

    inputs = {
        "model": policy.hash,
        "numerics": run.numerics,
        "template": run.template,
        "generator": run.component("generator", *generator),
        "sampling": sampling_key(sampling),
        "banned": list(banned_ids(run.tokenizer)),
        "prompts": prompts_key(prompts),
        "draw": [run.plan.config.seed, iteration, purpose],
    }
    stage = run.stage("generate", where, inputs, compute)
    return read_candidates(stage.path / "candidates.arrow"), stage


def draw_candidates(
    run: Context, step: IterationPlan, policy: Policy, done: dict[str, Stage]
) -> tuple[Candidates | None, Mapping[str, int]]:
    """The iteration's candidates (None where it generates nothing), and unusable prompts counted by reason."""
    plan = step.generated
    if plan is None:
        return None, {}
    prompts, targets, lost = _prompts(run, step)
    candidates, done["generate"] = generate(
        run,
        policy,
        prompts,
        (plan.settings.generator.name, plan.generator),
        plan.sampling,
        where=f"iter_{step.iteration}/generate",
        iteration=step.iteration,
        purpose="curate",
    )
    return with_targets(candidates, targets) if plan.labeler.needs.targets else candidates, lost


def _prompts(run: Context, step: IterationPlan) -> tuple[tuple[Prompt, ...], Mapping[str, Response], Mapping[str, int]]:
    """The prompts of this iteration, reference answers where the labeler needs them, and unusable prompts by reason."""
    plan = step.generated
    if plan is None:
        return (), {}, {}
    name = prompt_set(run.data.source, plan.settings.prompts)
    if name == "offline":
        return _of_iteration(run, step, offline_prompts(run.data.pairs.pairs)), {}, {}
    limits = limits_of(run.plan)
    named = _of_iteration(run, step, named_prompts(run.data.source, name))
    prompts, lost = tokenize_prompts(run.tokenizer, named, limits)
    if not plan.labeler.needs.targets:
        return prompts, {}, lost
    targets, unusable = tokenize_targets(run.tokenizer, prompts, limits)
    lost = {reason: lost.get(reason, 0) + unusable.get(reason, 0) for reason in sorted({*lost, *unusable})}
    return tuple(prompt for prompt in prompts if prompt.id in targets), targets, lost


def _of_iteration(run: Context, step: IterationPlan, prompts: tuple[AnyPrompt, ...]) -> tuple[AnyPrompt, ...]:
    plan = step.generated
    if plan is not None and plan.settings.disjoint:
        first = plan.settings.from_iteration
        prompts = share_of_round(prompts, step.iteration - first, run.plan.config.loop.iterations - first + 1)
    return prompts if plan is None else prompts[: plan.settings.limit]

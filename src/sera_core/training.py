"""The training stage of an iteration: references from the store, prompts under prefixes, one resumable training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sera_core.config import LoraConfig, RunConfig
from sera_core.context import Context, Policy
from sera_core.curate.score import both_sides
from sera_core.data.prefixes import prefixed_prompts
from sera_core.errors import ConfigError
from sera_core.models.load import load_config
from sera_core.plan import IterationPlan
from sera_core.prepare import limits_of
from sera_core.protocols import Progress
from sera_core.records import Pair, Prompt, Response, StepRecord
from sera_core.selection import Curated
from sera_core.train.arguments import normal_training_fields
from sera_core.train.batch import Prefixed, Reference
from sera_core.train.lora import LoraOptions
from sera_core.train.run import EVIDENCE, TrainRequest, train
from sera_core.train.step import Algebra
from sera_core.workspace import Stage

# Intermediate policies may be shared by several runs, so their card names none.
INTERMEDIATE_CARD = "# Intermediate policy\n\nAn iterate of a Sera run; the run's final model has the full card.\n"


def train_stage(
    run: Context,
    step: IterationPlan,
    curated: Curated,
    policies: tuple[Policy, Policy],
    on_step: Callable[[StepRecord], None],
) -> Stage:
    """Train from the first of `policies`, with the second as the reference, on the curated pairs."""
    start, reference = policies
    parts, config = step.objective, step.config
    pairs = curated.pairs.pairs
    reads_reference = parts.loss.needs.reference

    def compute(folder: Path, progress: Progress) -> None:
        plain = _reference(run, step, reference, both_sides(pairs), progress) if reads_reference else None
        request = TrainRequest(
            pairs=curated.pairs,
            reference=plain,
            algebra=Algebra(parts.loss, parts.transforms, parts.smoother, parts.reweighter),
            training=config.training,
            lora=None if config.policy.lora is None else _lora(config.policy.lora),
            seed=config.seed,
            iteration=step.iteration,
            token_budget=config.scoring.token_budget,
            workdir=folder,
            load_model=lambda: run.load(start),
            tokenizer=run.tokenizer,
            policy_is_reference=start.hash == reference.hash,
            card=INTERMEDIATE_CARD,
            progress=progress,
            prefixed={
                prefix: _prefixed(run, step, reference if reads_reference else None, pairs, prefix, progress)
                for prefix in _prefixes(step)
            },
            load_reference=lambda: run.load(reference),
            meter=run.workspace.meter,
        )
        with warnings.catch_warnings():
            # What torch names in its place does not do the same yet, as the warning itself says.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            train(request, on_step)

    inputs = {
        "start": start.hash,
        "reference": reference.hash if reads_reference else None,
        "pairs": curated.digest,
        "objective": objective_key(run, step),
        "training": normal_training_fields(config.training),
        "policy": config.policy.model_dump(exclude={"model", "revision", "base"}),
        "template": run.template,
        "token_budget": config.scoring.token_budget,
        "draw": [config.seed, step.iteration],
        "evidence": EVIDENCE,
    }
    if _prefixes(step):
        # Where a prompt was cut decides where its prefix stands.
        inputs["tokens"] = config.tokens.model_dump(exclude={"chat_template"})
    if run.ranks.world > 1:
        # Ranks share out the effective batch, and with it the order of its sums.
        inputs["world"] = run.ranks.world
    return run.stage("train", f"iter_{step.iteration}/train", inputs, compute, resumable=True, together=True)


def objective_key(run: Context, step: IterationPlan) -> list[str]:
    """What identifies the components of the objective in a stage's key, the loss first."""
    names, parts = step.config.objective, step.objective
    return [
        run.component("objective", names.loss.name, parts.loss),
        *(
            run.component("transform", spec.name, part)
            for spec, part in zip(names.transforms, parts.transforms, strict=True)
        ),
        run.component("smoother", names.smoother.name, parts.smoother),
        run.component("reweighter", names.reweighter.name, parts.reweighter),
    ]


def _prefixes(step: IterationPlan) -> list[str]:
    return sorted({prefix for transform in step.objective.transforms for prefix in transform.needs.prefixes})


def _reference(
    run: Context, step: IterationPlan, reference: Policy, responses: Sequence[Response], progress: Progress
) -> Reference:
    training = step.config.training
    both = run.ranks.main_first(lambda: run.training_logps(reference, responses, training, progress))
    chosen, rejected = np.split(both.astype(np.float32), 2)
    return chosen, rejected


def _prefixed(
    run: Context,
    step: IterationPlan,
    reference: Policy | None,
    pairs: Sequence[Pair],
    prefix: str,
    progress: Progress,
) -> Prefixed:
    """Prompts of the pairs under `prefix` and, with a reference, its log-probs there."""
    prompts = prefixed_prompts(run.tokenizer, [pair.prompt for pair in pairs], prefix, limits_of(run.plan))
    _check_positions(run, pairs, prompts)
    ids = tuple(prompt.ids for prompt in prompts)
    if reference is None:
        return Prefixed(ids, None)
    under: Mapping[str, Prompt] = {prompt.id: prompt for prompt in prompts}
    responses = [replace(response, prompt=under[response.prompt.id]) for response in both_sides(pairs)]
    return Prefixed(ids, _reference(run, step, reference, responses, progress))


def _check_positions(run: Context, pairs: Sequence[Pair], prompts: Sequence[Prompt]) -> None:
    positions = getattr(load_config(run.initial.path).get_text_config(), "max_position_embeddings", None)
    longest = max(
        len(prompt.ids) + max(len(pair.chosen.ids), len(pair.rejected.ids))
        for pair, prompt in zip(pairs, prompts, strict=True)
    )
    if positions is not None and longest > positions:
        config: RunConfig = run.plan.config
        raise ConfigError(
            f"Under its prefix a pair has {longest} tokens, but the model has {positions} positions. Shorten the "
            f"prefix, or lower tokens.max_prompt_tokens (now {config.tokens.max_prompt_tokens})."
        )


def _lora(config: LoraConfig) -> LoraOptions:
    modules = None if config.target_modules == "all-linear" else tuple(config.target_modules)
    return LoraOptions(config.r, float(config.alpha), config.dropout, modules)

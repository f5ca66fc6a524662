"""Before the first iteration: resolve the policy, read the source, tokenise once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from sera_core.context import Policy, Prepared
from sera_core.data.tables import read_pairs, write_pairs
from sera_core.data.tokens import TokenLimits, template_hash, tokenize_pairs, tokenize_prompts
from sera_core.errors import ConfigError, DataError
from sera_core.models.hashes import weights_hash
from sera_core.models.load import load_config, resolve_model
from sera_core.plan import Plan
from sera_core.protocols import Progress
from sera_core.records import Pairs, SourceData
from sera_core.reporter import Reporter
from sera_core.workspace import Stage, Workspace


def initial_policy(plan: Plan, cache: Path, progress: Progress) -> Policy:
    """The policy the run starts from, on disk."""
    settings = plan.config.policy
    if settings.model == "auto":
        path = plan.source.policy(plan.config.seed, cache, progress)
    else:
        path = resolve_model(settings.model, cache, revision=settings.revision)
    return Policy(0, path, weights_hash(path))


def limits_of(plan: Plan) -> TokenLimits:
    """The run's token limits."""
    tokens = plan.config.tokens
    return TokenLimits(tokens.max_prompt_tokens, tokens.max_response_tokens, tokens.truncation, tokens.prompt_side)


def check_context_length(plan: Plan, policy: Policy) -> None:
    """Refuse limits that do not fit into the model's context.

    Raises:
        ConfigError: prompt and answer together exceed the model's positions.
    """
    positions = getattr(load_config(policy.path).get_text_config(), "max_position_embeddings", None)
    config = plan.config
    answers = [config.tokens.max_response_tokens, plan.evaluation_sampling.max_new_tokens]
    answers += [step.generated.sampling.max_new_tokens for step in plan.iterations if step.generated is not None]
    longest = config.tokens.max_prompt_tokens + max(answers)
    if positions is not None and longest > positions:
        raise ConfigError(
            f"tokens.max_prompt_tokens = {config.tokens.max_prompt_tokens} and answers of up to {max(answers)} tokens "
            f"make {longest}, but the model has {positions} positions. Lower tokens.max_prompt_tokens, "
            "tokens.max_response_tokens or max_new_tokens."
        )


def prepare(plan: Plan, tokenizer: PreTrainedTokenizerBase, workspace: Workspace, reporter: Reporter) -> Prepared:
    """Read the source and tokenise its pairs and evaluation prompts, as the stage ``data``."""
    progress = reporter.stage_started("data")
    source = workspace.ranks.main_first(lambda: plan.source.load(plan.config.seed))
    limits = limits_of(plan)
    template = template_hash(tokenizer)
    sets = {"pairs": source.pairs, "validation": source.validation}
    sets |= {f"probe_{name}": pairs for name, pairs in sorted(source.probes.items())}

    def compute(folder: Path) -> None:
        for done, (name, pairs) in enumerate(sets.items()):
            progress(done, len(sets))
            write_pairs(folder / f"{name}.arrow", tokenize_pairs(tokenizer, pairs, limits, source.name))

    inputs = {
        "source": source.fingerprint,
        "template": template,
        "limits": repr(limits),
        "provenance": plan.provenance[f"source:{plan.config.source.name}"],
    }
    stage = workspace.stage("data", "data", inputs, compute)
    reporter.stage_finished("data", stage.seconds, stage.reused)
    evaluation, dropped = tokenize_prompts(tokenizer, source.evaluation, limits)
    if not evaluation:
        counts = ", ".join(f"{reason} {count}" for reason, count in dropped.items()) or "none"
        raise DataError(
            f"Source '{source.name}' leaves no evaluation prompt (held out {len(source.evaluation)}, dropped {counts})."
            " Give more data with distinct prompts, a split of held-out pairs, or a larger source.evaluation."
        )
    return Prepared(
        source=source,
        pairs=_training_pairs(stage, source),
        validation=read_pairs(stage.path / "validation.arrow"),
        evaluation=evaluation[: plan.config.evaluation.prompts],
        probes={name: read_pairs(stage.path / f"probe_{name}.arrow") for name in sorted(source.probes)},
        key=stage.key,
    )


def _training_pairs(stage: Stage, source: SourceData) -> Pairs:
    """Training pairs with both kinds of drops: rows refused while reading, and pairs dropped while tokenising."""
    pairs = read_pairs(stage.path / "pairs.arrow")
    dropped: Mapping[str, int] = {
        reason: source.dropped.get(reason, 0) + pairs.dropped.get(reason, 0)
        for reason in sorted({*source.dropped, *pairs.dropped})
    }
    return replace(pairs, dropped=dropped)

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
from sera_core.models.load import load_config, load_tokenizer, resolve_model
from sera_core.plan import Plan
from sera_core.protocols import Progress
from sera_core.records import Pairs, SourceData
from sera_core.reporter import Reporter
from sera_core.workspace import Stage, Workspace


def initial_policy(plan: Plan, cache: Path, progress: Progress) -> Policy:
    """The policy the run starts from, on disk."""
    settings = plan.config.policy
    return _policy(plan, 0, settings.model, settings.revision, cache, progress)


def base_policy(plan: Plan, cache: Path, progress: Progress) -> Policy | None:
    """What the initial policy was tuned from, on disk; None where `policy.base` names nothing."""
    name = plan.config.policy.base
    return None if name is None else _policy(plan, -1, name, None, cache, progress)


def _policy(plan: Plan, iteration: int, name: str, revision: str | None, cache: Path, progress: Progress) -> Policy:
    if name == "auto":
        path = plan.source.policy(plan.config.seed, cache, progress)
    else:
        path = resolve_model(name, cache, revision=revision)
    return Policy(iteration, path, weights_hash(path))


def check_base(base: Policy, initial: Policy, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a base whose log-probs say nothing about the policy's responses.

    Raises:
        ConfigError: the base has the policy's own weights, or another vocabulary.
    """
    if base.hash == initial.hash:
        raise ConfigError(
            f"policy.base ({base.path}) has the weights of policy.model, so every implicit reward would be 0. "
            "Give what the policy was tuned from."
        )
    own, other = tokenizer.get_vocab(), load_tokenizer(base.path).get_vocab()
    differ = sorted(token for token in {*own, *other} if own.get(token) != other.get(token))
    if differ:
        raise ConfigError(
            f"policy.base ({base.path}) has another tokenizer than policy.model: {len(differ)} tokens have other ids "
            f"or are missing on one side, first {differ[0]!r}. Give what the policy was tuned from."
        )


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

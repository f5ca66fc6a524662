"""Refusals once the data are read and before anything is generated or trained: what only the data can tell."""

from __future__ import annotations

from collections import Counter

from transformers import PreTrainedTokenizerBase

from sera_core.context import Policy, Prepared
from sera_core.curate.prompts import named_prompts, offline_prompts, prompt_set, share_of_round
from sera_core.data.prefixes import prefixed_prompts
from sera_core.errors import ConfigError
from sera_core.held_out import prefixes_of
from sera_core.models.load import load_config
from sera_core.plan import IterationPlan, Plan
from sera_core.prepare import limits_of


def check_data(plan: Plan, data: Prepared) -> None:
    """Raise ConfigError when the data lack what the plan asks of them: held-out pairs, scores, prompts."""
    stop = plan.config.loop.stop
    if stop is not None and stop.metric == "accuracy" and not data.validation.pairs:
        raise ConfigError(
            "loop.stop.metric = accuracy needs held-out pairs, and the source leaves none. Raise source.validation, or "
            "choose another metric."
        )
    _check_held_out(plan, data)
    for step in plan.iterations:
        _check_scores(step, data)
        _check_pairs_per_prompt(step, data)
        _check_prompts(plan, step, data)


def check_prefixes(plan: Plan, data: Prepared, tokenizer: PreTrainedTokenizerBase, initial: Policy) -> None:
    """Refuse prompt prefixes that cannot stand in the prompts, or make held-out pairs longer than the model reads.

    Raises:
        ConfigError: a prefix spells a special token or makes a pair too long. DataError: a prompt has no user turn.
    """
    positions = getattr(load_config(initial.path).get_text_config(), "max_position_embeddings", None)
    pairs = (*data.validation.pairs, *data.pairs.pairs[:1])
    for prefix in dict.fromkeys(prefix for step in plan.iterations for prefix in prefixes_of(plan, step)):
        prompts = prefixed_prompts(tokenizer, [pair.prompt for pair in pairs], prefix, limits_of(plan))
        answers = [max(len(pair.chosen.ids), len(pair.rejected.ids)) for pair in pairs]
        longest = max((len(prompt.ids) + answer for prompt, answer in zip(prompts, answers, strict=True)), default=0)
        if positions is not None and longest > positions:
            raise ConfigError(
                f"Under the prompt prefix {prefix!r} a pair has {longest} tokens, but the model has {positions} "
                "positions. Shorten the prefix, or lower tokens.max_prompt_tokens or tokens.max_response_tokens."
            )


def _check_held_out(plan: Plan, data: Prepared) -> None:
    settings, count = plan.config.evaluation, len(data.validation.pairs)
    if settings.tuning_pairs and settings.tuning_pairs >= count:
        raise ConfigError(
            f"evaluation.tuning_pairs = {settings.tuning_pairs} must leave at least one of the {count} held-out pairs "
            "to evaluate on. Lower it, or raise source.validation."
        )
    if settings.prefixes and not count:
        raise ConfigError(
            "evaluation.prefixes is set, but the source leaves no held-out pairs to measure under them. Remove it, or "
            "raise source.validation."
        )


def _check_scores(step: IterationPlan, data: Prepared) -> None:
    plan = step.offline
    if plan is None or not plan.acts or plan.scorer is None or not plan.scorer.needs.annotations:
        return
    missing = [pair.id for pair in data.pairs.pairs if pair.chosen.score is None or pair.rejected.score is None]
    if missing:
        raise ConfigError(
            f"offline.scorer reads annotated scores, which {len(missing)} of {len(data.pairs.pairs)} pairs lack, "
            f"first '{missing[0]}'. Use data with scores, or another scorer."
        )


def _check_pairs_per_prompt(step: IterationPlan, data: Prepared) -> None:
    plan, settings = step.offline, step.config.offline
    wanted = 1 if plan is None or not plan.acts else getattr(plan.selector, "pairs_per_prompt", 1)
    most = max(Counter(pair.prompt.id for pair in data.pairs.pairs).values(), default=0)
    # No pair at all is for the selection to say, with what was dropped.
    if settings is not None and wanted > most > 0:
        raise ConfigError(
            f"offline.selector '{settings.selector.name}' keeps pairs of prompts with at least {wanted} pairs in "
            f"iteration {step.iteration}, and no prompt of the data has more than {most}. Use data with several scored "
            "responses to a prompt and source.pairing=best_vs_rest, or fewer stages."
        )


def _check_prompts(plan: Plan, step: IterationPlan, data: Prepared) -> None:
    if step.generated is None:
        return
    settings = step.generated.settings
    name = prompt_set(data.source, settings.prompts)
    count = len(offline_prompts(data.pairs.pairs) if name == "offline" else named_prompts(data.source, name))
    if settings.disjoint:
        share_of_round(range(count), 0, plan.config.loop.iterations - settings.from_iteration + 1)

"""What generators share: refusals before anything is loaded, and candidates from token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from sera_core.errors import ConfigError, ModelError
from sera_core.protocols import GenerationContext, Sampling
from sera_core.records import Candidates, Ids, Prompt, Response


@dataclass(frozen=True, slots=True)
class Row:
    """Sample `sample` of prompt number `prompt`."""

    prompt: int
    sample: int


def check_sampling(sampling: Sampling) -> None:
    """Raise ConfigError for sampling values out of range."""
    if sampling.samples < 1 or sampling.max_new_tokens < 1:
        raise ConfigError(
            f"Sampling needs samples >= 1 and max_new_tokens >= 1, got {sampling.samples} and "
            f"{sampling.max_new_tokens}."
        )
    if not 0 < sampling.top_p <= 1 or not 0 <= sampling.temperature < float("inf"):
        raise ConfigError(
            f"Sampling needs temperature >= 0 and top_p in (0, 1], got {sampling.temperature} and {sampling.top_p}."
        )
    if sampling.temperature == 0 and sampling.samples > 1:
        raise ConfigError(
            f"Temperature 0 is greedy: all {sampling.samples} samples would be equal. Set samples to 1 or a "
            "temperature above 0."
        )


def check_prompts(prompts: Sequence[Prompt], sampling: Sampling, config: PreTrainedConfig) -> None:
    """Raise ModelError for a prompt without tokens, or one too long for the model of `config`."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    for prompt in prompts:
        length = len(prompt.ids)
        if length == 0:
            raise ModelError(f"Prompt {prompt.id!r} has no tokens; generation needs at least one.")
        if limit is not None and length + sampling.max_new_tokens > limit:
            raise ModelError(
                f"Prompt {prompt.id!r} has {length} tokens; with max_new_tokens {sampling.max_new_tokens} that passes "
                f"the model's {limit} positions. Shorten prompts or max_new_tokens."
            )


def vocabulary_size(config: PreTrainedConfig) -> int:
    """How many token ids the model of `config` has logits for."""
    return int(config.get_text_config().vocab_size)


def candidates_of(
    prompts: Sequence[Prompt],
    written: Mapping[Row, Ids],
    samples: int,
    tokenizer: PreTrainedTokenizerBase,
    context: GenerationContext,
) -> Candidates:
    """Candidates of what was written, int32 ids that keep their stop id; texts leave special tokens out."""
    decoded = tokenizer.batch_decode([ids.tolist() for ids in written.values()], skip_special_tokens=True)
    texts = dict(zip(written, decoded, strict=True))
    rows = [[Row(i, k) for k in range(samples)] for i in range(len(prompts))]
    return Candidates(
        tuple(prompts),
        tuple(tuple(_response(prompts, row, written[row], texts[row], context) for row in group) for group in rows),
    )


def _response(prompts: Sequence[Prompt], row: Row, ids: Ids, text: str, context: GenerationContext) -> Response:
    writer = context.iteration if context.writer is None else context.writer
    return Response(
        prompt=prompts[row.prompt],
        ids=ids,
        text=text,
        finish_reason="stop" if int(ids[-1]) in context.stop else "length",
        origin=f"policy:{writer}",
        sample=row.sample,
    )

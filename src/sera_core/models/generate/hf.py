"""Generation with transformers: batched, left-padded, the same samples at every batch size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sera_core.errors import ConfigError, ModelError
from sera_core.models.generate.common import Row, candidates_of, check_prompts, check_sampling, vocabulary_size
from sera_core.models.generate.decode import decode, settings
from sera_core.models.generate.prefill import shared_prefill
from sera_core.models.generate.sampling import RowSampler
from sera_core.models.generate.seeds import row_seed
from sera_core.models.load import load_policy, load_tokenizer, quiet
from sera_core.protocols import GenerationContext, Needs, Sampling
from sera_core.records import Candidates, Ids, Prompt


@dataclass(frozen=True)
class Transformers:
    """Samples with `transformers`' own generate. Its options change memory and speed, not which samples come out.

    `token_budget` bounds rows times (prompt + new tokens) of a batch.
    """

    token_budget: int = 16384

    def __post_init__(self) -> None:
        """Refuse a budget without tokens."""
        if self.token_budget < 1:
            raise ConfigError(f"token_budget must be at least 1, got {self.token_budget}.")

    @property
    def needs(self) -> Needs:
        """Nothing beyond the policy."""
        return Needs()

    def generate(
        self, model: Path, prompts: Sequence[Prompt], sampling: Sampling, context: GenerationContext
    ) -> Candidates:
        """`sampling.samples` responses per prompt; sample k's draw depends on seed, iteration, purpose, prompt id, k.

        A response ends with the first stop id, which it keeps (``stop``), or at the token limit (``length``).
        Temperature 0 is greedy and allows one sample.

        Raises:
            ConfigError: sampling values out of range. ModelError: unusable model, an empty prompt, or one too long, or
                the device's memory runs out.
        """
        check_sampling(sampling)
        if not prompts:
            return Candidates((), ())
        policy = load_policy(model, dtype=context.dtype, attn_implementation=context.attn_implementation)
        tokenizer = load_tokenizer(model)
        check_prompts(prompts, sampling, policy.config)
        # Leftovers of the checkpoint's own sampling defaults would fill every field left open.
        policy.generation_config = settings()
        pad = _pad_id(tokenizer, context, vocabulary_size(policy.config))
        if pad == tokenizer.pad_token_id:
            # An id that only fills for want of one may be a word.
            context = replace(context, banned=(*context.banned, pad))
        total = len(prompts) * sampling.samples
        written: dict[Row, Ids] = {}
        for rows in self._batches(prompts, sampling):
            try:
                written |= dict(zip(rows, _run(policy, pad, prompts, rows, sampling, context), strict=True))
            except torch.OutOfMemoryError as error:
                raise ModelError(self._memory_advice(prompts, rows, sampling)) from error
            if context.progress is not None:
                context.progress(len(written), total)
        return candidates_of(prompts, written, sampling.samples, tokenizer, context)

    def _memory_advice(self, prompts: Sequence[Prompt], rows: Sequence[Row], sampling: Sampling) -> str:
        width = len(prompts[rows[0].prompt].ids) + sampling.max_new_tokens
        smaller = (
            f"Lower the generator's token_budget (now {self.token_budget}), for example to {len(rows) // 2 * width}"
        )
        advice = smaller if len(rows) > 1 else "Shorten max_new_tokens or tokens.max_prompt_tokens"
        return (
            f"The device ran out of memory while generating {len(rows)} responses of up to {width} tokens each, prompt "
            f"included. {advice}, or set policy.dtype to bfloat16."
        )

    def _batches(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[list[Row]]:
        """Rows by falling prompt length, as many at once as the budget allows."""
        batch: list[Row] = []
        width = 0
        for i in sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].ids), i)):
            for k in range(sampling.samples):
                if batch and (len(batch) + 1) * width > self.token_budget:
                    yield batch
                    batch = []
                if not batch:
                    width = len(prompts[i].ids) + sampling.max_new_tokens
                batch.append(Row(i, k))
        yield batch


def _run(
    policy: PreTrainedModel,
    pad: int,
    prompts: Sequence[Prompt],
    rows: Sequence[Row],
    sampling: Sampling,
    context: GenerationContext,
) -> list[Ids]:
    """New ids of each row of one batch, cut after the first stop id."""
    numbers = list(dict.fromkeys(row.prompt for row in rows))
    ids, mask = (tensor.to(policy.device) for tensor in _left_padded([prompts[i].ids for i in numbers], pad))
    lines = torch.tensor([numbers.index(row.prompt) for row in rows], device=policy.device)
    seeds = [
        row_seed(context.seed, context.iteration, context.purpose, prompts[row.prompt].id, row.sample) for row in rows
    ]
    sampler = RowSampler(
        torch.tensor(seeds, device=policy.device),
        ids.shape[1],
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        banned=sorted(set(context.banned) - set(context.stop)),
    )
    with torch.inference_mode(), quiet():
        written = decode(
            policy,
            ids[lines],
            mask[lines],
            sampler,
            cache=shared_prefill(policy, ids, mask, lines),
            stop=context.stop,
            pad=pad,
            max_new_tokens=sampling.max_new_tokens,
        )
    return _cut(written.cpu().numpy().astype(np.int32), context.stop)


def _left_padded(prompts: Sequence[Ids], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, int64 [p, l]."""
    ids = torch.full((len(prompts), max(map(len, prompts))), pad)
    mask = torch.zeros_like(ids)
    for line, prompt in enumerate(prompts):
        ids[line, -len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[line, -len(prompt) :] = 1
    return ids, mask


def _cut(ids: Ids, stop: Sequence[int]) -> list[Ids]:
    """Each line of int32 [b, l] up to and including its first stop id."""
    stops = np.isin(ids, stop)
    lengths = np.where(stops.any(1), stops.argmax(1) + 1, ids.shape[1])
    return [line[:length].copy() for line, length in zip(ids, lengths, strict=True)]


def _pad_id(tokenizer: PreTrainedTokenizerBase, context: GenerationContext, vocabulary: int) -> int:
    """An id to fill with. It is masked in prompts, and in answers it only follows a stop id."""
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id < vocabulary:
        return int(tokenizer.pad_token_id)
    return context.stop[0] if context.stop else 0

"""Reference answers of prompts as token ids, for labelers that need them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from sera_core.data.encoding import Encoder
from sera_core.data.tokens import TokenLimits
from sera_core.records import FinishReason, Prompt, Response


def tokenize_targets(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], limits: TokenLimits
) -> tuple[dict[str, Response], dict[str, int]]:
    """The reference answer of each prompt by prompt id, and the count of unusable ones by reason.

    Reasons: missing_target, empty_response, special_token_in_text, too_long (only under ``drop``). Under ``cut`` a
    long answer ends at the limit without an end-of-turn token, as in `tokenize_pairs`.
    """
    encoder = Encoder(tokenizer)
    dropped: Counter[str] = Counter()
    usable: list[Prompt] = []
    for prompt in prompts:
        reason = _refuse(encoder, prompt)
        if reason is None:
            usable.append(prompt)
        else:
            dropped[reason] += 1
    ids = encoder.response_ids(
        [prompt.source.messages for prompt in usable], [prompt.source.target or "" for prompt in usable]
    )
    found: dict[str, Response] = {}
    for prompt, answer in zip(usable, ids, strict=True):
        long = answer.size > limits.max_response_tokens
        if long and limits.truncation == "drop":
            dropped["too_long"] += 1
            continue
        reason_given: FinishReason = "length" if long else "given"
        text = encoder.clean(prompt.source.target or "", not isinstance(prompt.source.messages, str))
        found[prompt.id] = Response(prompt, answer[: limits.max_response_tokens], text, reason_given, "offline")
    return found, dict(sorted(dropped.items()))


def _refuse(encoder: Encoder, prompt: Prompt) -> str | None:
    if prompt.source.target is None:
        return "missing_target"
    return encoder.refuse_answer(prompt.source.target, not isinstance(prompt.source.messages, str))

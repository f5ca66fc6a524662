"""From text to token ids: one rendering, one BOS, one end of turn, one truncation policy for both answers.

The boundary between prompt and answer is where generation starts: prompt ids come from the prompt's text alone and
are the same for every answer and for sampling. An answer is tokenised as the continuation of that text; where the
tokenizer would merge tokens across the boundary, it is tokenised apart, so that the prompt's ids never change.

Rows whose content spells a special token are refused (`special_token_in_text`), because it would become a control
token. The one exception is an answer that ends in its own terminator, which is not written twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from sera_core.data.encoding import Encoder, encode_prompt, encode_response
from sera_core.data.templates import banned_ids, chat_tokenizer, end_of_turn_id, stop_ids, template_hash
from sera_core.errors import ConfigError, DataError
from sera_core.records import FinishReason, Ids, Pair, Pairs, Prompt, Response, TextPair, TextPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "TokenLimits",
    "banned_ids",
    "chat_tokenizer",
    "encode_prompt",
    "encode_response",
    "end_of_turn_id",
    "stop_ids",
    "template_hash",
    "tokenize_pairs",
    "tokenize_prompts",
]

_CHUNK = 4096

Truncation = Literal["drop", "cut"]
Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """How long prompts and answers may be, in tokens, and what happens to longer ones.

    truncation: ``drop`` refuses a pair whose prompt or either answer is too long; ``cut`` shortens the prompt on
    `prompt_side`, keeping a leading BOS, and each answer at its end, where no end of turn is invented.

    Raises:
        ConfigError: a limit below 1 or an unknown word.
    """

    max_prompt_tokens: int = 512
    max_response_tokens: int = 512
    truncation: Truncation = "cut"
    prompt_side: Side = "left"

    def __post_init__(self) -> None:
        for name in ("max_prompt_tokens", "max_response_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"tokens.{name} must be at least 1, not {getattr(self, name)}.")
        for name, words in (("truncation", get_args(Truncation)), ("prompt_side", get_args(Side))):
            if getattr(self, name) not in words:
                raise ConfigError(f"tokens.{name} must be one of {', '.join(words)}, not {getattr(self, name)!r}.")


def tokenize_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[TextPair], limits: TokenLimits, source: str
) -> Pairs:
    """Tokenised pairs in the order given; unusable ones dropped and counted.

    Reasons: empty_prompt, empty_response, special_token_in_text, too_long (only under ``drop``), identical_pair
    (equal ids after cutting). Both answers and all pairs of one prompt id share one `Prompt`.

    Raises:
        DataError: a pair id occurs twice, one prompt id names two prompts, or the template fails.
    """
    _refuse_repeats("pair", [pair.id for pair in pairs])
    prompts, reasons = _prompts(tokenizer, [pair.prompt for pair in pairs], limits)
    template = template_hash(tokenizer) if pairs else ""
    encoder = Encoder(tokenizer)
    dropped: Counter[str] = Counter()
    kept: list[Pair] = []
    for start in range(0, len(pairs), _CHUNK):
        chunk: list[TextPair] = []
        for pair in pairs[start : start + _CHUNK]:
            reason = reasons.get(pair.prompt.id) or _refuse_answers(encoder, pair)
            if reason:
                dropped[reason] += 1
            else:
                chunk.append(pair)
        for pair, chosen, rejected in _answers(encoder, chunk, prompts, limits):
            reason = _refuse_ids(chosen, rejected, limits)
            if reason:
                dropped[reason] += 1
            else:
                kept.append(Pair(pair.id, chosen, rejected, source, template, flipped=pair.flipped))
    return Pairs(tuple(kept), dict(sorted(dropped.items())))


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[TextPrompt], limits: TokenLimits
) -> tuple[tuple[Prompt, ...], dict[str, int]]:
    """Tokenised prompts in the order given and the count of dropped ones by reason.

    Reasons: empty_prompt, special_token_in_text, too_long (only under ``drop``).

    Raises:
        DataError: a prompt id occurs twice, or the template fails.
    """
    _refuse_repeats("prompt", [prompt.id for prompt in prompts])
    encoded, reasons = _prompts(tokenizer, prompts, limits)
    kept = tuple(encoded[prompt.id] for prompt in prompts if prompt.id not in reasons)
    return kept, dict(sorted(Counter(reasons.values()).items()))


def _refuse_repeats(kind: str, ids: Sequence[str]) -> None:
    """DataError naming the first ids that occur more than once."""
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DataError(
            f"{len(repeated)} {kind} ids occur more than once, first {', '.join(map(repr, repeated[:3]))}."
            f" Give every {kind} an id of its own."
        )


def _prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[TextPrompt], limits: TokenLimits
) -> tuple[dict[str, Prompt], dict[str, str]]:
    """Usable prompts by id, already cut, and the reason by id for the others."""
    encoder = Encoder(tokenizer)
    unique: dict[str, TextPrompt] = {}
    for prompt in prompts:
        if unique.setdefault(prompt.id, prompt).messages != prompt.messages:
            raise DataError(f"The prompt id {prompt.id!r} names two different prompts. Give each prompt its own id.")
    reasons = {name: reason for name, p in unique.items() if (reason := encoder.refuse_prompt(p.messages))}
    usable = [prompt for prompt in unique.values() if prompt.id not in reasons]
    encoded: dict[str, Prompt] = {}
    for start in range(0, len(usable), _CHUNK):
        chunk = usable[start : start + _CHUNK]
        for prompt, ids in zip(chunk, encoder.prompt_ids([p.messages for p in chunk]), strict=True):
            if limits.truncation == "drop" and ids.size > limits.max_prompt_tokens:
                reasons[prompt.id] = "too_long"
            else:
                encoded[prompt.id] = Prompt(prompt.id, _cut_prompt(ids, limits, tokenizer.bos_token_id), prompt)
    return encoded, reasons


def _cut_prompt(ids: Ids, limits: TokenLimits, bos: object) -> Ids:
    """The last (or first) `max_prompt_tokens` of `ids` [p]; a leading BOS stays in front."""
    limit = limits.max_prompt_tokens
    if ids.size <= limit:
        return ids
    if limits.prompt_side == "right":
        return ids[:limit]
    if ids[0] == bos:
        return np.concatenate([ids[:1], ids[ids.size - limit + 1 :]])
    return ids[ids.size - limit :]


def _refuse_answers(encoder: Encoder, pair: TextPair) -> str | None:
    """The reason either answer's text is unusable, or None."""
    chat = not isinstance(pair.prompt.messages, str)
    return encoder.refuse_answer(pair.chosen, chat) or encoder.refuse_answer(pair.rejected, chat)


def _answers(
    encoder: Encoder, pairs: Sequence[TextPair], prompts: Mapping[str, Prompt], limits: TokenLimits
) -> list[tuple[TextPair, Response, Response]]:
    """Both answers of each pair as responses, cut to the limit under ``cut`` only."""
    asked = [pair.prompt.messages for pair in pairs for _ in range(2)]
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    ids = encoder.response_ids(asked, texts)
    rows = []
    for i, pair in enumerate(pairs):
        prompt = prompts[pair.prompt.id]
        chat = not isinstance(pair.prompt.messages, str)
        chosen = _response(prompt, ids[2 * i], encoder.clean(pair.chosen, chat), pair.chosen_score, limits)
        rejected = _response(prompt, ids[2 * i + 1], encoder.clean(pair.rejected, chat), pair.rejected_score, limits)
        rows.append((pair, chosen, rejected))
    return rows


def _response(prompt: Prompt, ids: Ids, text: str, score: float | None, limits: TokenLimits) -> Response:
    """One answer from data; `finish_reason` is ``length`` when it was cut."""
    cut = limits.truncation == "cut" and ids.size > limits.max_response_tokens
    reason: FinishReason = "length" if cut else "given"
    return Response(prompt, ids[: limits.max_response_tokens] if cut else ids, text, reason, "offline", score=score)


def _refuse_ids(chosen: Response, rejected: Response, limits: TokenLimits) -> str | None:
    """The reason a tokenised pair is unusable, or None."""
    if max(chosen.ids.size, rejected.ids.size) > limits.max_response_tokens:
        return "too_long"
    if any(response.finish_reason == "given" and response.ids.size < 2 for response in (chosen, rejected)):
        return "empty_response"
    return "identical_pair" if np.array_equal(chosen.ids, rejected.ids) else None

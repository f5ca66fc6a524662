"""One tokenizer's rules for prompts and answers, worked out once and applied to batches of text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sera_core.data.templates import TurnFormat, eos_id, render, special_pattern, tokenize, turn_format
from sera_core.errors import DataError
from sera_core.records import Ids, Message, Prompt, TextPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = tuple[Message, ...] | str

# Texts whose tokens stay apart from what follows, tried in this order when an answer must be tokenised alone.
_ANCHORS = ("\n", "\x02", "☺")


class Encoder:
    """Turns prompts and answers into ids for one tokenizer; conversations through its template, strings without.

    Nothing is computed before it is needed: a tokenizer without a template serves plain strings.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def turn(self) -> TurnFormat:
        """The template's framing of an assistant's turn."""
        return turn_format(self.tokenizer)

    @cached_property
    def special(self) -> re.Pattern[str]:
        """Finds special tokens spelt out in content."""
        return special_pattern(self.tokenizer)

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts a BOS before plain text by itself."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and list(self.tokenizer("a")["input_ids"])[:1] == [bos]

    @cached_property
    def terminators(self) -> tuple[str, ...]:
        """Texts that end an answer: the template's end of turn and eos."""
        stop = self.turn.stop_text
        return tuple(sorted({*self._eos_text, *((stop,) if stop else ())}))

    @cached_property
    def _eos_text(self) -> tuple[str, ...]:
        eos = self.tokenizer.eos_token
        return (eos,) if isinstance(eos, str) and eos.strip() else ()

    def clean(self, text: str, chat: bool) -> str:
        """The answer without a terminator spelt out at its end (white space around the terminator goes with it)."""
        stripped = text.rstrip()
        for end in self.terminators if chat else self._eos_text:
            if stripped.endswith(end):
                return stripped[: -len(end)].rstrip()
        return text

    def refuse_prompt(self, messages: Messages) -> str | None:
        """``empty_prompt``, ``special_token_in_text`` or None. A plain string may open with the BOS text."""
        if isinstance(messages, str):
            contents = [self._without_bos(messages)]
        else:
            contents = [message.content for message in messages]
            if messages and messages[-1].role == "assistant":
                raise DataError(
                    "A prompt ends with an assistant's message, so there is nothing to answer. Prompts must end with"
                    " the user's turn; put the answer into chosen and rejected."
                )
        if not any(content.strip() for content in contents):
            return "empty_prompt"
        return "special_token_in_text" if any(self.special.search(c) for c in contents) else None

    def refuse_answer(self, text: str, chat: bool) -> str | None:
        """``empty_response``, ``special_token_in_text`` or None; `chat` says whether the prompt is a conversation."""
        text = self.clean(text, chat)
        if not text.strip():
            return "empty_response"
        return "special_token_in_text" if self.special.search(text) else None

    def prompt_texts(self, asked: Sequence[Messages]) -> list[str]:
        """The text of each prompt, up to where generation starts; conversations rendered in one call."""
        chats = list(dict.fromkeys(messages for messages in asked if not isinstance(messages, str)))
        texts = dict(zip(chats, render(self.tokenizer, chats, self.turn.generation), strict=True)) if chats else {}
        return [self._without_bos(m) if isinstance(m, str) else texts[m] for m in asked]

    def prompt_ids(self, asked: Sequence[Messages]) -> list[Ids]:
        """int32 [p] of each prompt, with one BOS in front at most.

        Raises:
            DataError: a rendering holds two adjacent BOS tokens that are not at its beginning.
        """
        rows = tokenize(self.tokenizer, self.prompt_texts(asked))
        return [self._one_bos(ids, isinstance(m, str)) for m, ids in zip(asked, rows, strict=True)]

    def _without_bos(self, text: str) -> str:
        """Plain text without a BOS spelt out in front."""
        bos = self.tokenizer.bos_token
        return text.removeprefix(bos) if isinstance(bos, str) and self.adds_bos else text

    def _one_bos(self, ids: list[int], plain: bool) -> Ids:
        """Leading BOS tokens collapsed to one; a plain prompt gets one if the tokenizer would add it."""
        bos = self.tokenizer.bos_token_id
        if plain and self.adds_bos:
            ids = [bos, *ids]
        while bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        doubled = bos != self.tokenizer.eos_token_id and any(a == b == bos for a, b in itertools.pairwise(ids))
        if bos is not None and doubled:
            raise DataError(
                f"The chat template of '{self.tokenizer.name_or_path}' writes two BOS tokens in a row inside a"
                " conversation. Set `tokens.chat_template` to one that writes a single BOS."
            )
        return np.asarray(ids, dtype=np.int32)

    def response_ids(self, asked: Sequence[Messages], texts: Sequence[str]) -> list[Ids]:
        """int32 [r] of each answer `texts[i]` to `asked[i]`, ending in exactly one end-of-turn token.

        Raises:
            DataError: a rendering does not continue its prompt's.
        """
        fronts = self.prompt_texts(asked)
        bodies, stops = self._bodies(
            asked, fronts, [self.clean(t, not isinstance(m, str)) for t, m in zip(texts, asked, strict=True)]
        )
        contexts = [self._context(front) for front in fronts]
        distinct = sorted(set(contexts))
        heads = dict(zip(distinct, tokenize(self.tokenizer, distinct), strict=True))
        joint = tokenize(self.tokenizer, [context + body for context, body in zip(contexts, bodies, strict=True)])
        rows = []
        for context, ids, body, stop in zip(contexts, joint, bodies, stops, strict=True):
            head = heads[context]
            continues = ids[: len(head)] == head and head[-1:] != [self.tokenizer.unk_token_id]
            answer = ids[len(head) :] if continues else self._alone(body)
            rows.append(np.asarray(answer if stop is None else [*answer, stop], dtype=np.int32))
        return rows

    def _context(self, front: str) -> str:
        """`front` from its last special token on: no merge reaches over one, so no earlier text matters."""
        starts = [found.start() for found in self.special.finditer(front)]
        return front[starts[-1] :] if starts else front

    def _bodies(
        self, asked: Sequence[Messages], fronts: Sequence[str], texts: Sequence[str]
    ) -> tuple[list[str], list[int | None]]:
        """Each answer's text as the template writes it, up to its end of turn, and a token still to be appended."""
        chats = [(*m, Message("assistant", t)) for m, t in zip(asked, texts, strict=True) if not isinstance(m, str)]
        rendered = iter(render(self.tokenizer, chats, generation=False) if chats else ())
        bodies: list[str] = []
        stops: list[int | None] = []
        for messages, front, text in zip(asked, fronts, texts, strict=True):
            if isinstance(messages, str):
                bodies.append(text)
                stops.append(eos_id(self.tokenizer))
                continue
            full = next(rendered)
            if not full.startswith(front):
                raise self._not_a_continuation(full, front)
            bodies.append(self._until_stop(full[len(front) :]))
            stops.append(None if self.turn.stop_text else self.turn.stop_id)
        return bodies, stops

    def _until_stop(self, tail: str) -> str:
        """`tail` up to and with its first end-of-turn text after the header, or without its trailing white space."""
        if self.turn.stop_text is None:
            return tail[: len(tail) - self.turn.foot]
        end = tail.find(self.turn.stop_text, self.turn.head)
        if end < 0:
            raise DataError(
                f"The chat template of '{self.tokenizer.name_or_path}' ends some answers without"
                f" {self.turn.stop_text!r}: got {tail[-120:]!r}."
                " Set `tokens.chat_template` to one that ends every answer alike."
            )
        return tail[: end + len(self.turn.stop_text)]

    def _not_a_continuation(self, full: str, front: str) -> DataError:
        return DataError(
            f"The chat template of '{self.tokenizer.name_or_path}' renders prompt and answer differently from the"
            f" prompt alone: expected a text that begins with {front[-60:]!r} at its end, got {full[:120]!r}..."
            " Set `tokens.chat_template` to one that only appends."
        )

    def _alone(self, text: str) -> list[int]:
        """Ids of `text` as a continuation of nothing: tokenised behind an anchor that is taken off again.

        Tokenising the bare text would make tokenizers of the SentencePiece kind put a space before it.
        """
        eos = self.tokenizer.eos_token
        anchors = (*_ANCHORS, eos) if isinstance(eos, str) else _ANCHORS
        wanted = self._decode(tokenize(self.tokenizer, [text])[0]).lstrip()
        for anchor in anchors:
            front, both = tokenize(self.tokenizer, [anchor, anchor + text])
            rest = both[len(front) :]
            if both[: len(front)] == front and rest and self._decode(rest).lstrip() == wanted:
                return rest
        return tokenize(self.tokenizer, [text])[0]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: TextPrompt) -> Prompt:
    """The prompt's ids, uncut: template applied once, at most one BOS in front, ending where generation starts.

    Raises:
        DataError: the prompt is empty, spells a special token, ends with an answer, or the template fails.
    """
    encoder = Encoder(tokenizer)
    reason = encoder.refuse_prompt(prompt.messages)
    if reason:
        raise DataError(f"The prompt {prompt.id!r} cannot be used ({reason}). Remove it or change its text.")
    return Prompt(prompt.id, encoder.prompt_ids([prompt.messages])[0], prompt)


def encode_response(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, text: str) -> Ids:
    """int32 [r]: the answer's ids, uncut, so that prompt.ids followed by them is one sequence ending in one stop token.

    Raises:
        DataError: the answer is empty, spells a special token, or the template fails.
    """
    encoder = Encoder(tokenizer)
    messages = prompt.source.messages
    reason = encoder.refuse_answer(text, not isinstance(messages, str))
    if reason:
        raise DataError(f"The answer to prompt {prompt.id!r} cannot be used ({reason}). Change its text.")
    return encoder.response_ids([messages], [text])[0]

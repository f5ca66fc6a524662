"""Asking a judge's model: questions as token ids, answers from a store or from the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sera_core.context import Context
from sera_core.data.encoding import Encoder
from sera_core.data.templates import banned_ids, chat_tokenizer, eos_id, stop_ids
from sera_core.errors import ModelError
from sera_core.models.answers import AnswerStore, stored
from sera_core.models.classify import Row, load_reward_model, longest_row, reward_config, reward_rows, rewards
from sera_core.models.generate.hf import Transformers
from sera_core.models.load import load_config, load_policy, load_tokenizer
from sera_core.models.score import score_responses
from sera_core.models.store import response_key
from sera_core.protocols import GenerationContext, Progress, Sampling
from sera_core.records import Floats, Ids, Message, Prompt, Response, TextPrompt
from sera_core.workspace import digest

_QUESTIONS, _ROWS = 256, 512
_NOTHING: Ids = np.zeros(0, dtype=np.int32)

Turns: TypeAlias = tuple[Message, ...] | str


@dataclass(frozen=True, slots=True)
class JudgeModel:
    """A judge's model on disk, the hash of its weights and the hash of how its tokenizer makes ids of text.

    `own` says that it is a policy of the run, which is asked through the run's tokenizer.
    """

    path: Path
    hash: str
    template: str
    own: bool


class ModelAsker:
    """Asks one model, which is loaded only for what no store knows, and let go when the answers are there.

    Log-probs go into the run's store, replies and rewards into stores beside it. A text that spells a special token of
    the model's tokenizer is not asked about: its log-probs and rewards are nan and its replies empty.
    """

    def __init__(
        self,
        run: Context,
        model: JudgeModel,
        *,
        iteration: int,
        purpose: str,
        progress: Progress | None = None,
        dry: bool = False,
    ) -> None:
        """Replies are drawn by the run's seed, `iteration` and `purpose`. `dry`: check everything, but run no model."""
        self._run, self._model, self._dry = run, model, dry
        self._iteration, self._purpose, self._progress = iteration, purpose, progress
        self._store = AnswerStore(run.workspace.cache / "answers")

    def answer_logps(self, questions: Sequence[TextPrompt], answers: Sequence[str]) -> Floats:
        """See `Asker.answer_logps`.

        Raises:
            ModelError: two answers become the same tokens or a token for unknown words; a question does not fit into
                the model's context; or the model fails.
            DataError: the tokenizer cannot encode a question.
        """
        prompts = self._prompts(questions)
        asked = [prompt for prompt in prompts if prompt is not None]
        found = np.full((len(questions), len(answers)), np.nan)
        if not asked:
            return found
        responses = self._answers(asked, answers)
        self._check_context(asked, max(len(each.ids) for each in responses))
        logps = np.zeros(len(responses)) if self._dry else self._logps(responses)
        found[[i for i, prompt in enumerate(prompts) if prompt is not None]] = logps.reshape(len(asked), len(answers))
        return found

    def replies(
        self, questions: Sequence[TextPrompt], *, samples: int, temperature: float, max_new_tokens: int
    ) -> tuple[tuple[str, ...], ...]:
        """See `Asker.replies`. A reply depends on the run's seed, iteration, purpose, question and sample number alone.

        Raises:
            ModelError: a question with its reply does not fit into the model's context, or the model fails.
            DataError: the tokenizer cannot encode a question.
        """
        prompts = self._prompts(questions)
        asked = {prompt.id: prompt for prompt in prompts if prompt is not None}
        self._check_context(list(asked.values()), max_new_tokens)
        sampling = Sampling(samples, temperature, 1.0, max_new_tokens)
        known: Mapping[str, list[str]] = {} if self._dry else self._sampled(asked, sampling)
        nothing = ("",) * samples
        return tuple(nothing if p is None or p.id not in known else tuple(known[p.id]) for p in prompts)

    def rewards(self, responses: Sequence[Response]) -> Floats:
        """See `Asker.rewards`; float32 values.

        Raises:
            ModelError: the model is no reward model, a conversation does not fit into its context, or the model fails.
            DataError: the tokenizer cannot encode a conversation.
        """
        config = reward_config(self._model.path)
        tokenizer = self._run.tokenizer if self._model.own else load_tokenizer(self._model.path)
        rows = reward_rows(tokenizer, responses)
        limit = longest_row(config, tokenizer)
        for row, response in zip(rows, responses, strict=True):
            if limit is not None and row is not None and len(row.ids) > limit:
                raise self._too_long(f"The response to prompt {response.prompt.id!r}", len(row.ids), limit)
        keys = [None if row is None else self._row_key(row) for row in rows]
        by_key = {key: row for key, row in zip(keys, rows, strict=True) if key is not None and row is not None}
        known = dict.fromkeys(by_key, 0.0) if self._dry else self._rewarded(by_key)
        return np.array([np.nan if key is None else known[key] for key in keys], dtype=np.float64)

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return self._run.tokenizer if self._model.own else chat_tokenizer(load_tokenizer(self._model.path))

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self._tokenizer)

    @cached_property
    def _positions(self) -> int | None:
        config = load_config(self._model.path).get_text_config()
        return getattr(config, "max_position_embeddings", None)

    def _prompts(self, questions: Sequence[TextPrompt]) -> list[Prompt | None]:
        """Questions as token ids, uncut, named after them; None where the text spells a special token."""
        asked = [self._turns(each) for each in questions]
        usable = [i for i, turns in enumerate(asked) if self._encoder.refuse_prompt(turns) is None]
        ids = self._encoder.prompt_ids([asked[i] for i in usable])
        prompts: list[Prompt | None] = [None] * len(questions)
        for i, row in zip(usable, ids, strict=True):
            name = response_key(self._model.template, row, _NOTHING).hex()
            prompts[i] = Prompt(name, row, TextPrompt(name, asked[i]))
        return prompts

    def _turns(self, question: TextPrompt) -> Turns:
        """The question's conversation; its plain text for a model without a chat template."""
        messages = question.messages
        if isinstance(messages, str) or self._tokenizer.chat_template:
            return messages
        return "\n\n".join(message.content for message in messages) + "\n\n"

    def _answers(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Response]:
        """Every answer to every prompt, prompt by prompt, its end of turn left out."""
        turns = [prompt.source.messages for prompt in prompts for _ in answers]
        rows = self._encoder.response_ids(turns, [text for _ in prompts for text in answers])
        found = []
        for number, (row, asked) in enumerate(zip(rows, turns, strict=True)):
            stop = eos_id(self._tokenizer) if isinstance(asked, str) else self._encoder.turn.stop_id
            ids = row[:-1] if int(row[-1]) == stop else row
            prompt, text = prompts[number // len(answers)], answers[number % len(answers)]
            found.append(Response(prompt, ids, text, "given", "judge", number % len(answers)))
        self._check_answers(found[: len(answers)])
        return found

    def _check_answers(self, answers: Sequence[Response]) -> None:
        unknown = self._tokenizer.unk_token_id
        shared = len({answer.ids.tobytes() for answer in answers}) < len(answers)
        if shared or any(answer.ids.size == 0 or unknown in answer.ids.tolist() for answer in answers):
            texts = " and ".join(repr(answer.text) for answer in answers)
            raise ModelError(
                f"The tokenizer of the judge's model {self._model.path} cannot tell the answers {texts} apart, or has "
                "no token for one of them. Choose other labels, or another model."
            )

    def _check_context(self, prompts: Sequence[Prompt], more: int) -> None:
        longest = max((len(prompt.ids) for prompt in prompts), default=0) + more
        if self._positions is not None and longest > self._positions:
            raise self._too_long("A judge's question with its answer", longest, self._positions)

    def _too_long(self, what: str, tokens: int, positions: int) -> ModelError:
        return ModelError(
            f"{what} has {tokens} tokens, but the judge's model {self._model.path} reads {positions}. Nothing is cut "
            "off silently: lower generated.max_new_tokens, use shorter prompts, a shorter template or fewer "
            "max_new_tokens of the judge, or choose a model with a longer context."
        )

    def _logps(self, responses: Sequence[Response]) -> Floats:
        settings = self._run.plan.config
        sums, _ = score_responses(
            lambda: load_policy(
                self._model.path,
                dtype=settings.policy.dtype,
                attn_implementation=settings.policy.attn_implementation,
            ),
            "-".join([self._model.hash, *self._run.numerics]),
            responses,
            self._model.template,
            self._run.store,
            token_budget=settings.scoring.token_budget,
            progress=self._progress,
            meter=self._run.workspace.meter,
        )
        return sums

    def _sampled(self, asked: Mapping[str, Prompt], sampling: Sampling) -> Mapping[str, list[str]]:
        """Replies by prompt id."""
        policy = self._run.plan.config.policy
        context = GenerationContext(
            seed=self._run.plan.config.seed,
            iteration=self._iteration,
            purpose=self._purpose,
            stop=stop_ids(self._tokenizer),
            banned=banned_ids(self._tokenizer),
            dtype=policy.dtype,
            attn_implementation=policy.attn_implementation,
        )

        def compute(names: Sequence[str]) -> dict[str, list[str]]:
            drawn = Transformers().generate(self._model.path, [asked[name] for name in names], sampling, context)
            texts = [[response.text for response in group] for group in drawn.responses]
            return dict(zip(names, texts, strict=True))

        settings = [repr(sampling), repr(context), self._model.template, *self._run.numerics]
        name = f"replies-{self._model.hash}-{digest(settings)}"
        return stored(self._store, name, list(asked), compute, _QUESTIONS, self._progress)

    def _row_key(self, row: Row) -> str:
        types = _NOTHING if row.types is None else row.types
        return response_key(self._model.template, row.ids, types).hex()

    def _rewarded(self, rows: Mapping[str, Row]) -> Mapping[str, float]:
        """Rewards by row key."""
        settings = self._run.plan.config

        @cache
        def model() -> PreTrainedModel:
            return load_reward_model(
                self._model.path,
                dtype=settings.policy.dtype,
                attn_implementation=settings.policy.attn_implementation,
            )

        def compute(keys: Sequence[str]) -> dict[str, float]:
            found = rewards(model(), [rows[key] for key in keys], token_budget=settings.scoring.token_budget)
            return dict(zip(keys, found.tolist(), strict=True))

        name = "-".join(["rewards", self._model.hash, *self._run.numerics])
        return stored(self._store, name, list(rows), compute, _ROWS, self._progress)

"""Reward models: sequence classifiers with one output, and the rows they read."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sera_core.data.templates import render, tokenize
from sera_core.errors import ModelError, suggest
from sera_core.models.engine import own_attention
from sera_core.models.load import DTYPES, default_device, quiet
from sera_core.models.logps import default_budget
from sera_core.models.padded import cut
from sera_core.records import Floats, Ids, Message, Response


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A conversation with its last answer: `ids` int32 [r]; `types` int32 [r] where the tokenizer marks two texts."""

    ids: Ids
    types: Ids | None = None


def reward_config(path: Path) -> PreTrainedConfig:
    """The configuration of the reward model in a folder.

    Raises:
        ModelError: none that can be read, no sequence classifier, or one with several outputs.
    """
    try:
        with quiet():
            config: PreTrainedConfig = AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"Cannot read config.json in {path}. Give a folder written by save_pretrained.") from error
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ModelError(
            f"The model in {path} is of type {config.model_type!r}, which has no sequence classifier. Give one that "
            "AutoModelForSequenceClassification loads."
        )
    if config.num_labels != 1:
        raise ModelError(
            f"The model in {path} has {config.num_labels} outputs; a reward model has one (num_labels=1). Give a "
            "reward model, or use the judge llm_judge or llm_grades for a language model."
        )
    return config


def load_reward_model(path: Path, *, dtype: str = "float32", attn_implementation: str | None = None) -> PreTrainedModel:
    """The reward model in a folder, in eval mode, on a GPU where there is one.

    Raises:
        ModelError: see `reward_config`; damaged or missing weights, unknown dtype, or the device's memory is too small.
    """
    reward_config(path)
    if dtype not in DTYPES:
        raise ModelError(f"Unknown dtype {dtype!r}. {suggest(dtype, DTYPES)}")
    given = own_attention(attn_implementation)
    options = {} if given is None else {"attn_implementation": given}
    auto: Any = AutoModelForSequenceClassification
    try:
        with quiet():
            model, info = auto.from_pretrained(
                path, dtype=getattr(torch, dtype), local_files_only=True, output_loading_info=True, **options
            )
            model = model.to(default_device())
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
        raise ModelError(
            f"Cannot load a reward model from {path}: {reason}. Check that the folder was written completely by "
            "save_pretrained and that the device has memory for it."
        ) from error
    missing = sorted(map(str, info.get("missing_keys", ())))
    if missing:
        raise ModelError(
            f"{path} lacks weights for {len(missing)} parameters ({', '.join(missing[:3])}), which would be random: it "
            "is no reward model yet, or the folder is incomplete."
        )
    loaded: PreTrainedModel = model
    loaded.train(False)
    return loaded


def reward_rows(tokenizer: PreTrainedTokenizerBase, responses: Sequence[Response]) -> list[Row | None]:
    """The row of each response: its conversation through the tokenizer's chat template.

    Without a template: prompt and response as the two texts of a pair where the tokenizer has a separator, else one
    text. None where the content spells a special token, which the model would misread.

    Raises:
        DataError: the template or the tokenizer refuses a conversation.
    """
    special = _special(tokenizer)
    dialogues = [_dialogue(response) for response in responses]
    usable = [i for i, turns in enumerate(dialogues) if not any(special.search(turn.content) for turn in turns)]
    rows: list[Row | None] = [None] * len(responses)
    if not usable:
        return rows
    if tokenizer.chat_template:
        texts = render(tokenizer, [dialogues[i] for i in usable], generation=False)
        for i, ids in zip(usable, tokenize(tokenizer, texts), strict=True):
            rows[i] = Row(np.asarray(ids, dtype=np.int32))
        return rows
    for i in usable:
        rows[i] = _plain_row(tokenizer, dialogues[i])
    return rows


def longest_row(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """How many tokens a row may have; None where neither model nor tokenizer says."""
    known = [getattr(config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length]
    limits = [int(limit) for limit in known if isinstance(limit, int) and 0 < limit < 1 << 30]
    return min(limits, default=None)


def rewards(model: PreTrainedModel, rows: Sequence[Row], *, token_budget: int | None = None) -> Floats:
    """The model's single output for each row, float64 [n] from float32 logits, without gradient.

    Rows are sorted by length and padded on the right to at most `token_budget` tokens a batch. What a row gets does not
    depend, beyond rounding, on the rows beside it: a model that reads its last token finds it by the pad token of its
    configuration, and where it has none, by one that occurs in no row of the batch.

    Raises:
        ModelError: a reward is not finite, or the device's memory runs out.
    """
    budget = token_budget or default_budget(model.device)
    own_pad = model.config.get_text_config().pad_token_id
    found = np.full(len(rows), np.nan)
    for batch in cut([len(row.ids) for row in rows], budget):
        found[batch] = _forward(model, [rows[i] for i in batch], own_pad)
    if not np.isfinite(found).all():
        raise ModelError(
            f"The reward model {model.name_or_path} gave {int((~np.isfinite(found)).sum())} rewards that are not "
            "finite. Check the checkpoint, or use dtype float32."
        )
    return found


def _forward(model: PreTrainedModel, rows: Sequence[Row], own_pad: int | None) -> Floats:
    pad = _free_id(rows, int(model.config.get_text_config().vocab_size)) if own_pad is None else own_pad
    if pad is None and len(rows) > 1:
        return np.concatenate([_forward(model, [row], own_pad) for row in rows])
    width = max(len(row.ids) for row in rows)
    inputs: dict[str, Tensor] = {
        "input_ids": torch.tensor(np.stack([_padded(row.ids, width, pad or 0) for row in rows])).long(),
        "attention_mask": torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows]),
    }
    if rows[0].types is not None and "token_type_ids" in inspect.signature(model.forward).parameters:
        types = [_padded(row.types if row.types is not None else row.ids * 0, width, 0) for row in rows]
        inputs["token_type_ids"] = torch.tensor(np.stack(types)).long()
    text_config: Any = model.config.get_text_config()
    text_config.pad_token_id = pad
    try:
        with torch.inference_mode():
            call: Any = model
            logits: Tensor = call(**{name: value.to(model.device) for name, value in inputs.items()}).logits
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"The device ran out of memory with {len(rows)} rows of {width} tokens for the reward model. Lower "
            "scoring.token_budget, or set policy.dtype to bfloat16."
        ) from error
    finally:
        text_config.pad_token_id = own_pad
    return logits.float().reshape(len(rows)).cpu().numpy().astype(np.float64)


def _free_id(rows: Sequence[Row], vocabulary: int) -> int | None:
    """The smallest token id that occurs in no row."""
    present = {int(i) for row in rows for i in row.ids}
    return next((i for i in range(vocabulary) if i not in present), None)


def _padded(ids: Ids, width: int, pad: int) -> Ids:
    return np.pad(ids, (0, width - len(ids)), constant_values=pad)


def _dialogue(response: Response) -> tuple[Message, ...]:
    asked = response.prompt.source.messages
    turns = (Message("user", asked),) if isinstance(asked, str) else asked
    return (*turns, Message("assistant", response.text))


def _plain_row(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message]) -> Row:
    asked, answer = "\n\n".join(turn.content for turn in turns[:-1]), turns[-1].content
    call: Any = tokenizer
    texts = (asked, answer) if tokenizer.sep_token is not None else (f"{asked}\n\n{answer}",)
    encoded = call(*texts, verbose=False)
    types = encoded.get("token_type_ids")
    return Row(
        np.asarray(encoded["input_ids"], dtype=np.int32),
        None if types is None else np.asarray(types, dtype=np.int32),
    )


def _special(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Finds the text of any special token in content."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    texts = {text for text in added | set(tokenizer.all_special_tokens) if text.strip()}
    return re.compile("|".join(map(re.escape, sorted(texts, key=lambda t: (-len(t), t)))) or r"(?!)")

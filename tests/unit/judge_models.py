"""Tiny models for judges: a language model and reward models over a vocabulary of one's own, and runs that ask them."""

import json
from contextlib import contextmanager

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from sera_core import configfile
from sera_core.catalog import load_catalog
from sera_core.models.load import quiet
from sera_core.plan import make_plan
from sera_core.reporter import Silent
from sera_core.runner import open_run
from sera_core.testing.tiny import CHAT_TEMPLATE, SPECIAL, WORDS
from sera_core.workspace import Workspace

GRADES = tuple(f"Score:{grade}" for grade in range(7))
VOCABULARY = (*SPECIAL, *WORDS, "A", "B", *GRADES)
ASK = "one {prompt} and {first} or {second} is"
GRADE = "what is {response} two {prompt}"


def tokenizer_of(chat=True, closed=False, **options):
    """Word by word; a `closed` one refuses words it does not know."""
    unknown = {} if closed else {"unk_token": "<unk>"}
    words = [word if word != "<unk>" or not closed else "<unused>" for word in VOCABULARY]
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, **unknown))
    core.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"} | unknown | options
    template = {"chat_template": CHAT_TEMPLATE} if chat else {}
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **special, **template)


def config_of(positions=256, **options):
    return LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        **{"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, **options},
    )


def save_model(folder, kind=LlamaForCausalLM, seed=0, tokenizer=None, **options):
    """A random Llama; large weights, so that its opinions differ from text to text."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config_of(**options))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(std=0.3)
    with quiet():
        model.save_pretrained(folder)
    (tokenizer or tokenizer_of()).save_pretrained(folder)
    return folder


def save_reward(folder, seed=1, **options):
    return save_model(folder, LlamaForSequenceClassification, seed, **{"num_labels": 1, **options})


def write_scored(path, count=24, answers=4):
    """Prompts with several scored answers of different words."""
    rows = []
    for i in range(count):
        first, second = WORDS[i % len(WORDS)], WORDS[(i * 3 + 1) % len(WORDS)]
        texts = [f"{first} is {word}" for word in WORDS[8 : 8 + answers]]
        rows.append(
            {
                "id": f"row-{i}",
                "prompt": f"what is {first} and {second} {WORDS[i // len(WORDS)]}",
                "responses": [{"content": text, "score": 5 - 2 * k} for k, text in enumerate(texts)],
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


TINY = (
    "tokens.max_prompt_tokens=32",
    "tokens.max_response_tokens=16",
    "training.per_device_train_batch_size=4",
    "training.gradient_accumulation_steps=1",
    "training.learning_rate=1.0e-3",
    "training.warmup_steps=0",
    "evaluation.sampling.max_new_tokens=6",
)


def settings(preset, data, model, *more):
    return configfile.override(
        configfile.read(configfile.locate(preset)), [f"source={data}", f"policy.model={model}", *TINY, *more]
    )


@contextmanager
def opened(folder, config):
    """A run that has read its data and is about to begin."""
    plan = make_plan(config, load_catalog())
    with quiet(), Workspace(folder / "run", folder / "cache") as workspace:
        yield open_run(plan, workspace, Silent())

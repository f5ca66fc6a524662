"""A random model small enough to be made in every test session, with a real tokenizer and chat template."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sera_core.records import Ids

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<user>", "<assistant>")
WORDS = (
    "sky",
    "sea",
    "sun",
    "dog",
    "cat",
    "tree",
    "what",
    "is",
    "one",
    "two",
    "three",
    "blue",
    "red",
    "green",
    "and",
    "or",
    "not",
    "he",
    "she",
    "it",
)
CHAT_TEMPLATE = (
    "{{ '<bos>' }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' <assistant> ' + message['content'] + ' <eos>' }}"
    "{% else %}{{ ' <user> ' + message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' <assistant>' }}{% endif %}"
)


def token_ids(text: str) -> Ids:
    """Token ids int32 of a text of known words; unknown words count as ``<unk>``."""
    table = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    return np.array([table.get(word, table["<unk>"]) for word in text.split()], dtype=np.int32)


def save_tiny_model(folder: Path, seed: int = 0) -> Path:
    """Write a random two-layer Llama of hidden size 16 with its tokenizer to `folder`, and return `folder`.

    The weights depend on `seed` alone; the caller's random state is left as it was.
    """
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from sera_core.models.load import quiet

    table = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    core = Tokenizer(WordLevel(table, unk_token="<unk>"))  # noqa: S106 (a vocabulary entry, not a secret)
    core.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        pad_token="<pad>",  # noqa: S106
        eos_token="<eos>",  # noqa: S106
        bos_token="<bos>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    config = LlamaConfig(
        vocab_size=len(table),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=table["<pad>"],
        eos_token_id=table["<eos>"],
        bos_token_id=table["<bos>"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

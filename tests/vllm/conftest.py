"""A tiny model that vLLM can run: its attention on a CPU takes heads of 32 and more."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sera_core.models.load import quiet
from sera_core.testing.tiny import SPECIAL, WORDS, save_tiny_model


def save_model(folder, seed=0):
    """A random Llama with the tokenizer and chat template of the tiny model, wide weights so that rows differ."""
    save_tiny_model(folder, seed)
    config = LlamaConfig.from_pretrained(folder)
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 96, 32
    assert config.vocab_size == len(SPECIAL + WORDS)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.data.mul_(6)
    with quiet():
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("vllm") / "model")

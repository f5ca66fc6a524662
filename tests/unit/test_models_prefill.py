"""Sharing a prompt among its samples gives the scores of reading it once per sample."""

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sera_core.models.generate.prefill import shared_prefill

SMALL = {"vocab_size": 31, "hidden_size": 32, "num_hidden_layers": 2}
WIDE = {**SMALL, "intermediate_size": 48, "num_attention_heads": 4}
FAMILIES = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**WIDE, head_dim=8, num_key_value_heads=2)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**WIDE)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**WIDE, head_dim=8, num_key_value_heads=2, sliding_window=5)),
}


@pytest.fixture
def batch():
    torch.manual_seed(0)
    mask = torch.ones(4, 13, dtype=torch.int64)
    for i in range(4):
        mask[i, : 3 * i] = 0
    return torch.randint(1, 31, (4, 13)) * mask, mask, torch.tensor([0, 0, 0, 1, 2, 2, 3])


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_equals_one_prompt_per_row(family, batch):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    ids, mask, rows = batch
    settings = GenerationConfig(
        max_new_tokens=6, do_sample=False, pad_token_id=0, output_logits=True, return_dict_in_generate=True
    )
    widths = []
    plain = model.generate(input_ids=ids[rows], attention_mask=mask[rows], generation_config=settings)
    cache = shared_prefill(model, ids, mask, rows)
    model.get_input_embeddings().register_forward_hook(lambda *a: widths.append(tuple(a[1][0].shape)))
    shared = model.generate(
        input_ids=ids[rows], attention_mask=mask[rows], generation_config=settings, past_key_values=cache
    )
    assert torch.equal(plain.sequences, shared.sequences)
    torch.testing.assert_close(torch.stack(shared.logits), torch.stack(plain.logits), rtol=1e-4, atol=1e-5)
    assert set(widths) == {(7, 1)}


@torch.inference_mode()
def test_models_with_another_cache_are_left_alone(batch):
    model = MambaForCausalLM(MambaConfig(**SMALL, state_size=4)).eval()
    assert shared_prefill(model, *batch) is None


def test_prompts_of_one_token_have_nothing_to_share():
    ids = torch.ones(2, 1, dtype=torch.int64)
    model = FAMILIES["neox"]()
    assert shared_prefill(model, ids, ids, torch.tensor([0, 0, 1])) is None

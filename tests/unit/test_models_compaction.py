"""Rows that are finished leave the cache, and nothing else changes: tokens, shapes and steps counted on tiny models."""

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.cache_utils import DynamicLayer

from sera_core.models.generate import decode as decoding
from sera_core.models.generate.decode import decode
from sera_core.models.generate.prefill import shared_prefill
from sera_core.models.generate.sampling import RowSampler

SMALL = {"vocab_size": 31, "hidden_size": 32, "num_hidden_layers": 2}
WIDE = {**SMALL, "intermediate_size": 48, "num_attention_heads": 4}
GEMMA2 = {**WIDE, "head_dim": 8, "num_key_value_heads": 2, "sliding_window": 5}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**WIDE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**WIDE, head_dim=8, num_key_value_heads=2)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**GEMMA2)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=31, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            **SMALL, ffn_dim=48, num_attention_heads=4, word_embed_proj_dim=32, max_position_embeddings=64, dropout=0.0
        )
    ),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=31, hidden_size=32, n_layer=2, n_head=4)),
}
PAD, STOP, NEW = 0, (3, 4), 40
LENGTHS = (3, 5, 8, 13)


def prompts():
    torch.manual_seed(0)
    mask = torch.zeros(4, 13, dtype=torch.int64)
    for i, length in enumerate(LENGTHS):
        mask[i, -length:] = 1
    return torch.randint(5, 31, (4, 13)) * mask, mask, torch.arange(4).repeat_interleave(4)


def made(family):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    # Wide initial weights, so that rows differ; embeddings stay, because a tied head would only repeat the last token.
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "emb" not in name and "wte" not in name:
            weight.data.mul_(8)
    return model


def sampler(rows, width):
    return RowSampler(torch.arange(rows) * 77, width, temperature=1.0, top_p=0.95, banned=(PAD,))


@torch.inference_mode()
def decoded(model, *, stop=STOP, cached=True):
    ids, mask, rows = prompts()
    cache = shared_prefill(model, ids, mask, rows) if cached else None
    new = decode(model, ids[rows], mask[rows], sampler(16, 13), cache=cache, stop=stop, pad=PAD, max_new_tokens=NEW)
    return cut(new, stop)


def cut(new, stop):
    lines = []
    for line in new.tolist():
        ends = [i + 1 for i, token in enumerate(line) if token in stop]
        lines.append(line[: ends[0]] if ends else line)
    return lines


def watched(model):
    """Rows and keys of every forward pass from now on."""
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, out: seen.append(len(inputs[0])))
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_tokens_as_with_every_row_kept(family, monkeypatch):
    model = made(family)
    dropped = decoded(model)
    plain = decoded(model, cached=False)
    assert dropped == plain
    assert len({len(line) for line in plain}) > 4
    monkeypatch.setattr(decoding, "_STEPS", 1)
    monkeypatch.setattr(decoding, "_SHARE", 16)
    assert decoded(model) == plain


def test_finished_rows_are_not_computed(monkeypatch):
    monkeypatch.setattr(decoding, "_STEPS", 1)
    model = made("llama")
    lengths = sorted(map(len, decoded(model)))
    seen = watched(model)
    decoded(model)
    # The first pass reads the four prompts; then each step has the rows that wait, rounded up by at most a quarter.
    assert seen[0] == 4
    assert len(seen) == 1 + max(lengths)
    for step, rows in enumerate(seen[1:]):
        waiting = sum(length > step for length in lengths)
        assert waiting <= rows < 4 / 3 * waiting + 1
    assert seen[1:] == sorted(seen[1:], reverse=True)


def test_columns_that_only_finished_rows_filled_are_dropped(monkeypatch):
    monkeypatch.setattr(decoding, "_STEPS", 1)
    widths = []
    keep = RowSampler.keep

    def spy(self, rows, *, dropped=0):
        widths.append(dropped)
        return keep(self, rows, dropped=dropped)

    monkeypatch.setattr(RowSampler, "keep", spy)
    ids, mask, rows = prompts()
    model = made("llama")
    with torch.inference_mode():
        cache = shared_prefill(model, ids, mask, rows)
        cache_rows = torch.tensor([0, 1, 4, 5])
        assert decoding._drop(cache, cache_rows, mask[rows][cache_rows]) == 8
    assert cache.layers[0].keys.shape[:3] == (4, 4, 12 - 8)
    decoded(model)
    assert sum(widths) <= 13 - min(LENGTHS)


def test_windows_keep_their_columns():
    ids, mask, rows = prompts()
    with torch.inference_mode():
        cache = shared_prefill(made("gemma2"), ids, mask, rows)
        assert decoding._drop(cache, torch.tensor([0, 1]), mask[rows][:2]) == 0
    assert {len(layer.keys) for layer in cache.layers} == {2}


def test_few_steps_left_are_not_worth_a_copy(monkeypatch):
    monkeypatch.setattr(decoding, "_STEPS", NEW + 1)
    model = made("llama")
    seen = watched(model)
    decoded(model)
    assert set(seen[1:]) == {16}


@pytest.mark.parametrize("stop", [(), STOP])
def test_without_stop_ids_or_cache_nothing_drops(stop):
    model = made("llama")
    seen = watched(model)
    lines = decoded(model, stop=stop, cached=not stop)
    assert set(seen) <= {4, 16}
    assert stop or all(len(line) == NEW for line in lines)


def test_state_space_models_keep_their_rows():
    model = MambaForCausalLM(MambaConfig(**SMALL, state_size=4)).eval()
    ids, mask, rows = prompts()
    with torch.inference_mode():
        assert shared_prefill(model, ids, mask, rows) is None
    seen = watched(model)
    decoded(model)
    assert set(seen[1:]) == {16}


def test_layers_that_hold_more_than_keys_and_values_are_left_alone():
    class More(DynamicLayer):
        pass

    model = made("llama")
    ids, mask, rows = prompts()
    forward = model.base_model.forward

    def with_more(**inputs):
        output = forward(**inputs)
        output.past_key_values.layers[0].__class__ = More
        return output

    model.base_model.forward = with_more
    with torch.inference_mode():
        assert shared_prefill(model, ids, mask, rows) is None


def test_a_sampler_of_fewer_rows_draws_as_before():
    torch.manual_seed(0)
    logits, ids = torch.randn(6, 31), torch.zeros(6, 16, dtype=torch.int64)
    whole = sampler(6, 13)
    rows = torch.tensor([1, 4])
    assert torch.equal(whole.keep(rows, dropped=5)(ids[rows, 5:], logits[rows]), whole(ids, logits)[rows])

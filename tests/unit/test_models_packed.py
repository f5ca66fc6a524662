"""Packs against padded batches and against one sequence at a time: exact where used, refused where not."""

import logging

import numpy as np
import pytest
import test_models_logps as single
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from sera_core.errors import ModelError
from sera_core.models import attention, engine, head
from sera_core.models.attention import Layout, Shape, group_mask
from sera_core.models.batches import Group
from sera_core.models.engine import engine_of
from sera_core.models.logps import group_logps
from sera_core.models.packed import packed_batches
from sera_core.models.padded import padded_batches

PACKED = [family for family in single.FAMILIES if family not in ("bloom", "mamba")]
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
    return engine.response_sums([batch], body.token_logps(body.states, batch.targets))


def long_groups(seed=0):
    """Groups beyond the size of a shared attention call, one with many responses."""
    return single.groups(seed, ((150, (30, 1, 80)), (20, (130, 140)), (3, (4, 5)), (90, (60, 60, 60, 60, 90, 200))))


@pytest.mark.parametrize("family", single.FAMILIES)
def test_families(family):
    found = engine_of(single.build(family))
    assert found.packed == (family in PACKED)
    assert found.plain == (family != "gemma2")
    assert found.attention == ("packed_sdpa" if found.packed else "eager")
    assert bool(found.reason) == (not found.packed)


@pytest.mark.parametrize("family", PACKED)
def test_long_groups_equal_one_sequence_at_a_time(family):
    model, items = single.build(family), long_groups()
    with torch.no_grad():
        expected = single.naive(model, items)
        for budget in (None, 300, 900):
            found = group_logps(model, items, token_budget=budget).sums
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(padded_sums(model, items), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_gradients_of_long_groups_equal_one_sequence_at_a_time(family):
    model, items = single.build(family), long_groups(1)
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


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 9), budget=st.sampled_from([None, 1, 40, 150]), family=st.integers(0, 2))
def test_any_groups_equal_one_sequence_at_a_time(models, sizes, seed, budget, family):
    model, items = list(models.values())[family], single.groups(seed, sizes)
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
    assert found.forwarded_tokens == 20 + 5 + 7 + 5 + 4 + 7


@pytest.mark.parametrize("budget", [None, 1, 24, 60])
def test_packs_hold_every_response_once_within_the_budget(budget):
    items = single.groups(3, ((3, (5, 1, 9)), (1, (4,)), (12, (2, 7, 30, 1)), (30, (1,))))
    packs = packed_batches(items, budget, CPU)
    assert sorted(number for pack in packs for number in pack.responses) == list(range(9))
    for pack in packs:
        alone = len(pack.responses) == 1
        assert budget is None or pack.ids.numel() <= budget or alone
        assert (
            pack.useful
            == pack.ids.numel()
            == pack.layout.shapes[0].tokens + sum(shape.tokens for shape in pack.layout.shapes[1:])
        )
        # Every target follows its place, or opens a response after the prompt's last token.
        tokens = pack.ids[0]
        ends = np.cumsum(pack.lengths)
        opens = set((ends - pack.lengths).tolist())
        for slot, (place, target) in enumerate(zip(pack.places.tolist(), pack.targets.tolist(), strict=True)):
            assert slot in opens or int(tokens[place + 1]) == target


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


@pytest.mark.parametrize("window", [None, 5, 40])
def test_calls_of_every_size_equal_one_masked_call(window, monkeypatch):
    shapes = (Shape(9, (4, 8)), Shape(8, (6, 7)), Shape(1, (1,)), Shape(40, (30, 10, 50, 2)))
    tensors = torch.randn(3, 1, 2, sum(shape.tokens for shape in shapes), 4, generator=torch.manual_seed(0))
    whole = torch.block_diag(*(group_mask(shape, window).float() for shape in shapes)).bool()
    expected = torch.nn.functional.scaled_dot_product_attention(*tensors, whole).transpose(1, 2)
    for short, tails in ((0, 1), (0, 60), (30, 15), (1000, 1)):
        monkeypatch.setattr(attention, "_SHORT", short)
        monkeypatch.setattr(attention, "_TAILS", tails)
        module = torch.nn.Module()
        found, _ = attention._attention(
            module, *tensors, None, packed_layout=Layout(shapes, CPU), sliding_window=window
        )
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("elements", [1, 7 * single.VOCAB, 10**6])
@pytest.mark.parametrize("bias", [False, True])
def test_log_probs_of_the_head_equal_log_softmax(elements, bias, monkeypatch):
    monkeypatch.setattr(head, "_ELEMENTS", elements)
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


def test_the_users_attention_means_padded_batches(caplog):
    model = LlamaForCausalLM._from_config(LlamaConfig(**single.SMALL, **single.HEADS), attn_implementation="eager")
    with caplog.at_level(logging.INFO):
        found = engine_of(model)
        engine_of(model)
    assert not found.packed
    assert found.attention == "eager"
    assert [record.message for record in caplog.records] == [
        "LlamaForCausalLM is scored in padded batches: its attention is eager."
    ]


def test_a_model_whose_tokens_leak_is_padded():
    """A layer that mixes neighbours, as state-space layers do, sees other responses in a pack."""
    model = single.build("llama")
    mlp = model.model.layers[0].mlp
    mlp.register_forward_pre_hook(lambda _, inputs: (inputs[0] + inputs[0].roll(1, 1).tril(),))
    assert "responses of a pack apart" in engine_of(model).reason or "differ" in engine_of(model).reason
    assert model.config._attn_implementation == "sdpa"


def test_layers_that_hide_their_window_are_padded():
    """A window wider than the trial shows only in what the layers ask of their attention."""
    model = single.build("mistral")
    model.config.sliding_window = 4096
    assert engine_of(model).packed
    pack = packed_batches(engine._trial(model), None, CPU)[0]
    with torch.no_grad():
        model(**pack.arguments(model))
    assert engine._misread(model, pack) == ""
    pack.layout.asked.clear()
    pack.layout.asked[None] = 2
    assert engine._misread(model, pack) == "0 of its layers asked for a sliding window, 2 have one"
    pack.layout.asked[None] = 1
    assert engine._misread(model, pack) == "1 of its 2 layers use replaceable attention"


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
    model, items = single.build(family), long_groups(4)
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
    items = long_groups(5)
    results = []
    for name in (attention_name, "sdpa"):
        model = single.build(family).cuda()
        engine.choose_attention(model, name)
        results.append(trained(model, items))
    (sums, gradients), (padded, expected) = results
    torch.testing.assert_close(sums, padded, rtol=1e-4, atol=1e-4)
    for found, wanted in zip(gradients, expected, strict=True):
        assert float((found - wanted).norm()) <= 1e-3 * float(wanted.norm()) + 1e-6

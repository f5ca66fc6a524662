"""Products by oneDNN: the same values and gradients as torch's own, and only where they are meant to be."""

from contextlib import nullcontext

import numpy as np
import pytest
import test_models_logps as single
import torch
from torch.nn.functional import linear
from transformers import LlamaConfig, LlamaForCausalLM

from sera_core.models import products
from sera_core.models.extrapolation import extrapolated_logps
from sera_core.models.logps import group_logps
from sera_core.models.products import fast_products, product

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture
def calls(monkeypatch):
    """Shapes of the weights that oneDNN multiplied with; even the smallest are large enough for it."""
    seen, real = [], products._by_onednn

    def counted(rows, weight, bias):
        seen.append(tuple(weight.shape))
        return real(rows, weight, bias)

    monkeypatch.setattr(products, "_LARGE", 1)
    monkeypatch.setattr(products, "_by_onednn", counted)
    return seen


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (2, 5), (1, 3, 4)])
def test_values_and_gradients_are_torchs(calls, shape, bias):
    torch.manual_seed(0)
    given = [torch.randn(*shape, 6), torch.randn(9, 6), torch.randn(9) if bias else None]
    results = []
    for multiply in (product, linear):
        leaves = [None if each is None else each.clone().requires_grad_() for each in given]
        found = multiply(*leaves)
        (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum().backward()
        results.append([found.detach(), *(leaf.grad for leaf in leaves if leaf is not None)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert calls == [(9, 6), (6, 9)]


def test_what_needs_no_gradient_gets_none(calls):
    rows, weight = torch.randn(4, 6), torch.randn(9, 6, requires_grad=True)
    product(rows, weight).sum().backward()
    torch.testing.assert_close(weight.grad, rows.sum(0).expand(9, 6))
    assert calls == [(9, 6)]  # none for the rows
    assert not product(rows, weight.detach()).requires_grad


def test_only_what_a_gradient_reads_is_kept(calls):
    """The input of a frozen weight may change, and need not live, until the backward pass."""
    rows, weight = torch.randn(4, 6, requires_grad=True), torch.randn(9, 6)
    copied = rows * 1
    found = product(copied, weight)
    copied += 1
    found.sum().backward()
    torch.testing.assert_close(rows.grad, weight.sum(0).expand(4, 6))


def test_second_derivatives_are_refused(calls):
    rows = torch.randn(4, 6, requires_grad=True)
    (slope,) = torch.autograd.grad(product(rows, torch.randn(9, 6)).pow(2).sum(), rows, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("bias", [torch.randn(18)[::2], torch.ones(1).expand(9), torch.randn(1)])
def test_biases_that_the_operator_would_misread(calls, bias):
    rows, weight = torch.randn(4, 6), torch.randn(9, 6)
    torch.testing.assert_close(product(rows, weight, bias), linear(rows, weight, bias))
    assert calls == []


def test_weights_of_another_kind_multiply_themselves(calls):
    class Own(torch.Tensor):
        pass

    rows, weight = torch.randn(4, 6), torch.randn(9, 6)
    with products._Products():
        found = linear(input=rows, weight=weight.as_subclass(Own))
        assert isinstance(found, Own)
        assert calls == []
        linear(input=rows, weight=weight)
    assert calls == [(9, 6)]


def test_transposed_and_sliced_operands(calls):
    torch.manual_seed(0)
    rows, weight = torch.randn(8, 12).t()[2:], torch.randn(8, 30)[:, 3:11]
    torch.testing.assert_close(product(rows, weight), linear(rows, weight), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product(rows, weight.t().contiguous().t()), linear(rows, weight), rtol=1e-5, atol=1e-5)
    assert len(calls) == 2


@pytest.mark.parametrize("family", single.FAMILIES)
def test_log_probs_and_gradients_of_every_family(calls, family):
    model = single.build(family)
    results, counts = [], []
    for compute in (group_logps, single.naive):
        model.zero_grad()
        found = compute(model, single.groups())
        sums = found if isinstance(found, torch.Tensor) else found.sums
        (sums * torch.linspace(-1, 1, 6)).sum().backward()
        results.append([sums.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
        counts.append(len(calls))
    assert 0 < counts[0] == counts[1]  # outside of the context nothing is changed
    # GPT-2 has layers of its own kind. In the others those between embedding and head are multiplied so.
    assert family == "gpt2" or any(single.VOCAB not in shape for shape in calls)
    largest = max(float(gradient.abs().max()) for gradient in results[1][1:])
    for ours, expected in zip(*results, strict=True):
        atol = 1e-4 * float(expected.abs().max()) + 1e-7 * largest
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=atol)


def test_the_mixture_of_two_models_too(calls):
    model = single.build("llama")
    mixed = extrapolated_logps(model, lambda: nullcontext(model), single.groups(), 0.5)
    with torch.no_grad():
        torch.testing.assert_close(mixed.sums, single.naive(model, single.groups()), rtol=1e-5, atol=1e-4)
    assert calls


def test_checkpointed_layers_are_left_alone(calls):
    """They are computed again in the backward pass, by torch's own product, and must find the same tensors."""
    model = single.build("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    group_logps(model, single.groups()).sums.sum().backward()
    assert {shape[0] for shape in calls} <= {single.VOCAB, 32}  # the head alone, forward and backward
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_where_it_does_not_suit_torch_multiplies(calls, monkeypatch):
    rows, weight = torch.randn(3, 4), torch.randn(5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product(rows, weight).dtype is torch.bfloat16
    assert product(rows.bfloat16(), weight.bfloat16()).dtype is torch.bfloat16
    assert product(rows.double(), weight.double()).dtype is torch.float64
    assert product(rows[:0], weight).shape == (0, 5)
    assert product(rows[0], weight).shape == (5,)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    product(rows, weight)
    assert calls == []


def test_only_models_of_large_products_are_worth_it():
    small = single.build("llama")
    sizes = {"hidden_size": 512, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2}
    large = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).eval()
    # The embeddings are large, the layers are not.
    tied = LlamaConfig(
        vocab_size=8000, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    assert not isinstance(fast_products(LlamaForCausalLM(tied)), products._Products)
    assert not isinstance(fast_products(small), products._Products)
    assert isinstance(fast_products(large), products._Products)
    rng = np.random.default_rng(0)
    items = [single.Group(rng.integers(0, 64, 5).astype(np.int32), (rng.integers(0, 64, 7).astype(np.int32),))]
    with torch.no_grad():
        torch.testing.assert_close(group_logps(large, items).sums, single.naive(large, items), rtol=1e-5, atol=1e-4)

"""Extrapolated log-probs against full token logits mixed by hand, for families that change their logits."""

from contextlib import contextmanager, nullcontext

import pytest
import test_models_logps as single
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sera_core.errors import ModelError
from sera_core.models import head
from sera_core.models.extrapolation import extrapolated_logps
from sera_core.models.logps import group_logps
from sera_core.train.lora import LoraOptions, adapter_off, wrap_lora


def two(family):
    policy, reference = single.build(family), single.build(family)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return policy, reference


def mixed(policy, reference, items, strength):
    """One unpadded sequence at a time, all logits kept."""
    sums = []
    for group in items:
        for response in group.responses:
            ids = torch.tensor([*group.prompt.tolist(), *response.tolist()])[None]
            logits = (1 + strength) * policy(input_ids=ids).logits - strength * reference(input_ids=ids).logits
            tokens = logits.float().log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
            sums.append(tokens[len(group.prompt) - 1 :].sum())
    return torch.stack(sums)


@pytest.mark.parametrize("family", list(single.FAMILIES))
@pytest.mark.parametrize(("strength", "budget", "chunk"), [(0.5, None, 256), (0.125, 24, 3), (2.0, 24, 1)])
def test_mixture_of_token_logits(family, strength, budget, chunk, monkeypatch):
    monkeypatch.setattr(head, "_ELEMENTS", chunk * single.VOCAB)
    policy, reference = two(family)
    items = single.groups()
    found = extrapolated_logps(policy, lambda: nullcontext(reference), items, strength, token_budget=budget).sums
    with torch.no_grad():
        expected = mixed(policy, reference, items, strength)
        plain = group_logps(policy, items).sums
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert not found.requires_grad
    assert (found - plain).abs().max() > 1e-2, "the reference must matter"
    torch.testing.assert_close(group_logps(policy, items).sums, plain)  # the model is left as it was


def test_strength_zero_and_equal_models_give_the_policy():
    policy, reference = two("llama")
    items = single.groups()
    with torch.no_grad():
        plain = group_logps(policy, items).sums
    torch.testing.assert_close(extrapolated_logps(policy, lambda: nullcontext(reference), items, 0.0).sums, plain)
    torch.testing.assert_close(extrapolated_logps(policy, lambda: nullcontext(policy), items, 0.5).sums, plain)


def test_an_adapter_switched_off_serves_as_the_reference():
    base = single.build("llama")
    policy = wrap_lora(single.build("llama"), LoraOptions(r=2))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3)

    @contextmanager
    def off():
        with adapter_off(policy):
            yield policy

    items = single.groups()
    found = extrapolated_logps(policy, off, items, 0.5, token_budget=24).sums
    with torch.no_grad():
        torch.testing.assert_close(found, mixed(policy, base, items, 0.5), rtol=1e-5, atol=1e-4)


def test_two_vocabularies_are_refused():
    policy = single.build("llama")
    other = LlamaForCausalLM(LlamaConfig(**{**single.SMALL, "vocab_size": single.VOCAB + 3}, **single.HEADS))
    with pytest.raises(ModelError, match="61 and 64 token logits"):
        extrapolated_logps(policy, lambda: nullcontext(other), single.groups(), 0.5)


def test_no_group_and_no_finite_sum():
    policy = single.build("llama")
    assert extrapolated_logps(policy, lambda: nullcontext(policy), [], 0.5).sums.shape == (0,)
    with torch.no_grad():
        policy.lm_head.weight[3] = float("inf")
    with pytest.raises(ModelError, match="log-probability of response 0"):
        extrapolated_logps(policy, lambda: nullcontext(policy), single.groups(), 0.5)

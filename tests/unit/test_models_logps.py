"""group_logps against one-sequence-at-a-time full log-softmax, on random models of several families."""

import numpy as np
import pytest
import torch
from transformers import (
    BartConfig,
    BartForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
)

from sera_core.errors import ModelError
from sera_core.models import head
from sera_core.models.engine import engine_of
from sera_core.models.logps import Group, group_logps

VOCAB = 61
SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
POST = {"num_attention_heads": 4, "max_position_embeddings": 600, "is_decoder": True}
BART = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "encoder_layers": 2,
    "is_decoder": True,
}
OPT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "max_position_embeddings": 512,
}
GEMMA2 = {**SMALL, **HEADS, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0, "sliding_window": 8}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, **HEADS)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, **HEADS)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, num_attention_heads=4)),
    # Low caps on logits and attention scores, so that skipping one would show.
    "gemma2": lambda: Gemma2ForCausalLM._from_config(Gemma2Config(**GEMMA2), attn_implementation="eager"),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, **HEADS, sliding_window=8)),
    # Learned positions; the second also calls its decoder past its body.
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=512)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**OPT)),
    # Positions from the padding id on, a biased distance, no attention at all, positions nobody can name: padded.
    "roberta": lambda: RobertaForCausalLM(RobertaConfig(**SMALL, **POST, pad_token_id=5, type_vocab_size=1)),
    "bart": lambda: BartForCausalLM(BartConfig(**BART)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4)),
    "mamba": lambda: MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2)),
}


def build(family):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    with torch.no_grad():  # the default initialisation is too flat to tell errors apart
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model


def groups(seed=0, sizes=((3, (5, 1, 9)), (1, (4,)), (12, (2, 7)))):
    rng = np.random.default_rng(seed)

    def ids(n):
        return rng.integers(0, VOCAB, n).astype(np.int32)

    return [Group(ids(p), tuple(ids(r) for r in lengths)) for p, lengths in sizes]


def naive(model, items):
    sums = []
    for group in items:
        for response in group.responses:
            ids = torch.tensor(np.concatenate((group.prompt, response))[None].astype(np.int64))
            logps = model(input_ids=ids).logits.float().log_softmax(-1)[0, :-1]
            tokens = logps.gather(1, ids[0, 1:, None])[:, 0]
            sums.append(tokens[len(group.prompt) - 1 :].sum())
    return torch.stack(sums)


@pytest.fixture(scope="module")
def llama():
    return build("llama")


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_full_log_softmax(family):
    model = build(family)
    with torch.no_grad():
        result = group_logps(model, groups())
        expected = naive(model, groups())
    torch.testing.assert_close(result.sums, expected, rtol=1e-5, atol=1e-5)
    assert result.sums.dtype == torch.float32
    assert result.lengths.tolist() == [5, 1, 9, 4, 2, 7]
    assert result.lengths.dtype == torch.int64
    assert not result.sums.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_naive(family):
    model = build(family)
    gradients = []
    for compute in (lambda: group_logps(model, groups()).sums, lambda: naive(model, groups())):
        model.zero_grad()
        (compute() * torch.linspace(-1, 1, 6)).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    # A bias on the keys moves no attention: its gradient is zero up to the rounding of the largest ones.
    largest = max(float(gradient.abs().max()) for gradient in gradients[1])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()) + 1e-7 * largest)


def test_uniform_model_gives_minus_length_times_log_vocabulary():
    model = build("llama")
    torch.nn.init.zeros_(model.lm_head.weight)
    with torch.no_grad():
        result = group_logps(model, groups())
    torch.testing.assert_close(result.sums, -result.lengths * np.log(VOCAB), check_dtype=False)


def test_padding_order_and_budget_do_not_matter(llama):
    items = groups()
    with torch.no_grad():
        together = group_logps(llama, items)
        alone = torch.cat([group_logps(llama, [group]).sums for group in items])
        padded = group_logps(llama, [*items, *groups(1, ((40, (20,)),))]).sums[:6]
        backwards = group_logps(llama, items[::-1])
    torch.testing.assert_close(alone, together.sums, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(padded, together.sums, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backwards.sums, together.sums[[4, 5, 3, 0, 1, 2]], rtol=1e-5, atol=1e-5)
    for budget in (1, 20, 40, 10_000):
        with torch.no_grad():
            result = group_logps(llama, items, token_budget=budget)
        torch.testing.assert_close(result.sums, together.sums, rtol=1e-5, atol=1e-5)
        assert result.lengths.tolist() == together.lengths.tolist()


def test_budget_bounds_the_forward_passes_and_counts_tokens(llama):
    shapes = []
    handle = llama.model.embed_tokens.register_forward_hook(lambda *a: shapes.append(tuple(a[1][0].shape)))
    with torch.no_grad():
        result = group_logps(llama, groups(), token_budget=24)
        whole = group_logps(llama, groups())
    handle.remove()
    # Groups of 15, 4 and 19 tokens: the prompts once each, the last token of each response never.
    assert shapes == [(1, 19), (1, 19), (1, 38)]
    assert result.forwarded_tokens == result.useful_tokens == whole.forwarded_tokens == 38


def test_only_response_positions_reach_the_head(llama, monkeypatch):
    seen = []
    engine_of(llama)  # whose trial uses the head too
    original = head.product
    monkeypatch.setattr(head, "product", lambda *a: seen.append(len(a[0])) or original(*a))
    with torch.no_grad():
        group_logps(llama, groups(), token_budget=24)
    assert seen == [28]


def test_hook_is_removed_even_after_a_failure(llama, monkeypatch):
    before = dict(llama.lm_head._forward_pre_hooks)

    def fail(*args, **kwargs):
        raise RuntimeError("stop")

    monkeypatch.setattr(llama.model, "forward", fail)
    with pytest.raises(RuntimeError, match="stop"):
        group_logps(llama, groups())
    assert dict(llama.lm_head._forward_pre_hooks) == before


def test_bfloat16_model_gives_float32_sums():
    model = build("llama")
    with torch.no_grad():
        exact = group_logps(model, groups()).sums
        rough = group_logps(model.to(torch.bfloat16), groups()).sums
        # Beyond what bfloat16 can represent: the reduction ran in float32.
        assert rough.dtype == torch.float32
        assert not torch.equal(rough, rough.bfloat16().float())
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.5)


def test_peft_model():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(build("llama"), peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    with torch.no_grad():
        torch.testing.assert_close(group_logps(model, groups()).sums, naive(model, groups()), rtol=1e-5, atol=1e-5)
        with model.disable_adapter():
            without = group_logps(model, groups()).sums
        torch.testing.assert_close(without, group_logps(build("llama"), groups()).sums, rtol=1e-5, atol=1e-5)
    group_logps(model, groups()).sums.sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_" in n)


def ids(*values):
    return np.array(values, dtype=np.int32)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (Group(ids(), (ids(1),)), "Group 0 has an empty prompt"),
        (Group(ids(1), (ids(2), ids())), "Response 1 is empty"),
        (Group(ids(1), (ids(VOCAB),)), f"token id {VOCAB}; the model knows ids 0 to {VOCAB - 1}"),
        (Group(ids(1), (ids(-1),)), "token id -1"),
    ],
)
def test_refuses(llama, group, message):
    with pytest.raises(ModelError, match=message):
        group_logps(llama, [group])


def test_non_finite_names_the_response():
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight[7] = -float("inf")  # an id outside the others' responses
    first, second = Group(ids(1), (ids(2),)), Group(ids(3), (ids(7),))
    model.lm_head.register_forward_hook(lambda *a: a[2].nan_to_num(nan=-torch.inf, posinf=0.0))
    with torch.no_grad(), pytest.raises(ModelError, match="log-probability of response 1 is -inf"):
        group_logps(model, [first, second])


def test_model_without_head(llama):
    with pytest.raises(ModelError, match="no output embedding"):
        group_logps(llama.model, groups())


def test_nothing_to_score(llama):
    result = group_logps(llama, [], token_budget=10)
    assert result.sums.shape == result.lengths.shape == (0,)

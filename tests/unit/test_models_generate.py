"""The transformers generator on a tiny saved model: batch invariance, stopping, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sera_core.errors import ConfigError, ModelError
from sera_core.models.generate.hf import Transformers
from sera_core.models.load import load_policy, load_tokenizer
from sera_core.protocols import GenerationContext, Needs, Sampling
from sera_core.records import Prompt, TextPrompt

VOCAB = 24
STOP, PAD, BANNED = 2, 3, 7
SAMPLING = Sampling(samples=3, temperature=1.0, top_p=0.95, max_new_tokens=12)
CONTEXT = GenerationContext(seed=5, iteration=2, purpose="train", stop=(STOP,), banned=(BANNED,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    # Sampling defaults a checkpoint may carry; none of them may reach our generation.
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.1, top_k=1, repetition_penalty=9.0)
    model.save_pretrained(path)
    words = {f"w{i}": i for i in range(VOCAB)} | {"<stop>": STOP, "<pad>": PAD}
    words = {word: i for word, i in words.items() if word not in (f"w{STOP}", f"w{PAD}")}
    names = {"eos_token": "<stop>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "w0")), **names).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return tuple(
        Prompt(f"p{i}", rng.integers(8, VOCAB, 1 + i % 7).astype(np.int32), TextPrompt(f"p{i}", "x")) for i in range(11)
    )


def sampled(candidates):
    return {(r.prompt.id, r.sample): tuple(r.ids.tolist()) for r in candidates.flat()}


@pytest.fixture(scope="module")
def reference(folder, prompts):
    return Transformers().generate(folder, prompts, SAMPLING, CONTEXT)


def test_shape_and_provenance(reference, prompts):
    assert reference.prompts == prompts
    for prompt, group in zip(prompts, reference.responses, strict=True):
        assert [r.sample for r in group] == [0, 1, 2]
        assert all(r.prompt is prompt and r.origin == "policy:2" and r.ids.dtype == np.int32 for r in group)
    assert Transformers().needs == Needs()


def test_stop_and_length(reference):
    reasons = {r.finish_reason for r in reference.flat()}
    assert reasons == {"stop", "length"}
    for r in reference.flat():
        stops = np.flatnonzero(r.ids == STOP).tolist()
        assert stops == ([len(r.ids) - 1] if r.finish_reason == "stop" else [])
        assert len(r.ids) == 12 or r.finish_reason == "stop"
        assert not np.isin(r.ids, [BANNED, PAD]).any()


def test_text_leaves_special_tokens_out(reference):
    for r in reference.flat():
        assert r.text.split() == [f"w{i}" for i in r.ids.tolist() if i != STOP]


@pytest.mark.parametrize(("budget", "batches"), [(1, 33), (57, 10), (2000, 1)])
def test_batch_size_does_not_matter(folder, prompts, reference, budget, batches):
    told = []
    context = replace(CONTEXT, progress=lambda *a: told.append(a))
    result = Transformers(token_budget=budget).generate(folder, prompts, SAMPLING, context)
    assert sampled(result) == sampled(reference)
    assert told[-1] == (33, 33)
    assert len(told) == batches
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_shared_prefill_changes_nothing_but_the_work(folder, prompts, reference, monkeypatch):
    monkeypatch.setattr("sera_core.models.generate.hf.shared_prefill", lambda *_: None)
    assert sampled(Transformers().generate(folder, prompts, SAMPLING, CONTEXT)) == sampled(reference)


def test_order_and_company_do_not_matter(folder, prompts, reference):
    result = Transformers().generate(folder, prompts[4::-2], SAMPLING, CONTEXT)
    assert sampled(result) == {key: ids for key, ids in sampled(reference).items() if key[0] in ("p0", "p2", "p4")}
    assert [p.id for p in result.prompts] == ["p4", "p2", "p0"]


def test_fewer_samples_are_a_prefix(folder, prompts, reference):
    result = Transformers().generate(folder, prompts, replace(SAMPLING, samples=1), CONTEXT)
    assert sampled(result) == {key: ids for key, ids in sampled(reference).items() if key[1] == 0}


@pytest.mark.parametrize("change", [{"seed": 6}, {"iteration": 3}, {"purpose": "eval"}])
def test_streams_differ(folder, prompts, reference, change):
    result = Transformers().generate(folder, prompts, SAMPLING, replace(CONTEXT, **change))
    differing = sum(a != b for a, b in zip(sampled(result).values(), sampled(reference).values(), strict=True))
    assert differing > 25


def test_greedy_takes_the_most_probable_token(folder, prompts):
    sampling = Sampling(samples=1, temperature=0.0, max_new_tokens=6)
    result = Transformers().generate(folder, prompts, sampling, CONTEXT)
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    for response in result.flat():
        ids = torch.from_numpy(np.concatenate((response.prompt.ids, response.ids)).astype(np.int64))[None]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0]
        logits[:, [BANNED, PAD]] = -torch.inf
        assert logits[len(response.prompt.ids) - 1 : -1].argmax(1).tolist() == response.ids.tolist()


def test_first_token_follows_the_model(folder, prompts):
    prompt = prompts[3]
    copies = tuple(Prompt(f"c{i}", prompt.ids, prompt.source) for i in range(500))
    sampling = Sampling(samples=4, temperature=1.3, top_p=1.0, max_new_tokens=1)
    drawn = [r.ids[0] for r in Transformers().generate(folder, copies, sampling, CONTEXT).flat()]
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(prompt.ids.astype(np.int64))[None]).logits[0, -1] / 1.3
    logits[[BANNED, PAD]] = -torch.inf
    expected = logits.softmax(0).double().numpy()
    counts = np.bincount(drawn, minlength=VOCAB)
    z = (counts - 2000 * expected) / np.sqrt(2000 * expected * (1 - expected) + 1e-9)
    assert counts[[BANNED, PAD]].tolist() == [0, 0]
    assert np.abs(z[expected > 1e-3]).max() < 4


def test_no_stop_ids_means_full_length(folder, prompts):
    result = Transformers().generate(folder, prompts[:2], SAMPLING, replace(CONTEXT, stop=()))
    assert all(len(r.ids) == 12 and r.finish_reason == "length" for r in result.flat())


def test_no_prompts(folder):
    assert Transformers().generate(folder, (), SAMPLING, CONTEXT).flat() == ()


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(samples=2, temperature=0.0), "Temperature 0 is greedy"),
        (Sampling(samples=0), "samples >= 1"),
        (Sampling(max_new_tokens=0), "max_new_tokens >= 1"),
        (Sampling(temperature=-1.0), "temperature >= 0"),
        (Sampling(temperature=float("nan")), "temperature >= 0"),
        (Sampling(top_p=0.0), r"top_p in \(0, 1\]"),
    ],
)
def test_refuses_sampling(folder, prompts, sampling, message):
    with pytest.raises(ConfigError, match=message):
        Transformers().generate(folder, prompts, sampling, CONTEXT)


def test_refuses_prompts(folder, prompts):
    empty = Prompt("e", np.array([], np.int32), prompts[0].source)
    with pytest.raises(ModelError, match="'e' has no tokens"):
        Transformers().generate(folder, (empty,), SAMPLING, CONTEXT)
    long = Prompt("l", np.full(60, 8, np.int32), prompts[0].source)
    with pytest.raises(ModelError, match=r"'l' has 60 tokens; with max_new_tokens 12 that passes the model's 64"):
        Transformers().generate(folder, (long,), SAMPLING, CONTEXT)


def test_the_writer_may_be_another_iterate(folder, prompts, reference):
    result = Transformers().generate(folder, prompts[:2], SAMPLING, replace(CONTEXT, writer=1))
    assert {r.origin for r in result.flat()} == {"policy:1"}
    drawn = sampled(reference)
    assert all(drawn[key] == ids for key, ids in sampled(result).items())


def test_the_context_chooses_the_attention(folder, prompts, monkeypatch):
    asked = []

    def load(path, **options):
        asked.append(options)
        return load_policy(path, **options)

    monkeypatch.setattr("sera_core.models.generate.hf.load_policy", load)
    context = replace(CONTEXT, attn_implementation="eager")
    Transformers().generate(folder, prompts[:1], SAMPLING, context)
    assert asked == [{"dtype": "float32", "attn_implementation": "eager"}]


def test_an_id_that_only_fills_may_be_drawn(folder, prompts, monkeypatch):
    tokenizer = load_tokenizer(folder)
    tokenizer.pad_token = None
    monkeypatch.setattr("sera_core.models.generate.hf.load_tokenizer", lambda _: tokenizer)
    endless = replace(CONTEXT, stop=(), banned=())
    drawn = Transformers().generate(folder, prompts, replace(SAMPLING, samples=40), endless)
    # Every word is likely enough to come in thousands of draws; 0 fills, as there is neither a pad nor a stop token.
    assert {0, 1} <= {int(i) for response in drawn.flat() for i in response.ids}


def test_ids_beyond_the_models_vocabulary_do_no_harm(folder, prompts, reference, monkeypatch):
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    assert tokenizer.pad_token_id == VOCAB
    monkeypatch.setattr("sera_core.models.generate.hf.load_tokenizer", lambda _: tokenizer)
    context = replace(CONTEXT, banned=(BANNED, PAD, VOCAB))
    assert sampled(Transformers().generate(folder, prompts, SAMPLING, context)) == sampled(reference)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (2000, r"33 responses of up to 19 tokens each.* Lower the generator's token_budget \(now 2000\), .* to 304"),
        (1, r"1 responses of up to 19 tokens .* Shorten max_new_tokens or tokens.max_prompt_tokens"),
    ],
)
def test_out_of_memory_says_what_to_lower(folder, prompts, monkeypatch, budget, message):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("sera_core.models.generate.hf._run", full)
    with pytest.raises(ModelError, match=message):
        Transformers(token_budget=budget).generate(folder, prompts, SAMPLING, CONTEXT)


def test_refuses_options():
    with pytest.raises(ConfigError, match="token_budget must be at least 1, got 0"):
        Transformers(token_budget=0)

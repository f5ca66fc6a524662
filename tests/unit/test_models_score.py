"""score_responses: the model is loaded once at most, and never for what the store knows."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sera_core.errors import ModelError
from sera_core.meter import Meter, total
from sera_core.models.engine import engine_of
from sera_core.models.logps import Group, group_logps
from sera_core.models.score import score_responses
from sera_core.models.store import LogProbStore
from sera_core.records import Prompt, Response, TextPrompt


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=31, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    ).eval()


@pytest.fixture
def responses():
    rng = np.random.default_rng(0)
    result = []
    for number in range(5):
        prompt = Prompt(str(number), rng.integers(0, 31, 2 + number).astype(np.int32), TextPrompt(str(number), "x"))
        result += [
            Response(prompt, rng.integers(0, 31, 1 + k * 2).astype(np.int32), "", "stop", "offline") for k in range(3)
        ]
    order = rng.permutation(15)
    return [result[i] for i in order]


class Provider:
    def __init__(self, model):
        self.model, self.calls = model, 0

    def __call__(self):
        self.calls += 1
        return self.model


def test_values_order_and_second_run_without_a_model(tmp_path, model, responses):
    provider, told = Provider(model), []
    store = LogProbStore(tmp_path)
    sums, lengths = score_responses(
        provider, "m", responses, "t", store, chunk=4, token_budget=30, progress=lambda *a: told.append(a)
    )
    with torch.no_grad():
        expected = [float(group_logps(model, [Group(r.prompt.ids, (r.ids,))]).sums[0]) for r in responses]
    np.testing.assert_allclose(sums, expected, rtol=1e-5)
    assert sums.dtype == np.float64
    assert lengths.tolist() == [len(r.ids) for r in responses]
    assert lengths.dtype == np.int64
    assert provider.calls == 1
    assert told == [(0, 15), (4, 15), (8, 15), (12, 15), (15, 15)]
    again, _ = score_responses(provider, "m", responses, "t", LogProbStore(tmp_path))
    assert provider.calls == 1
    assert again.tobytes() == sums.tobytes()


def test_other_scorer_or_template_misses(tmp_path, model, responses):
    provider, store = Provider(model), LogProbStore(tmp_path)
    for scorer, template in (("m", "t"), ("n", "t"), ("m", "u")):
        score_responses(provider, scorer, responses, template, store)
    assert provider.calls == 3


def test_equal_responses_are_computed_once(tmp_path, model, responses):
    engine_of(model)  # its trial reads tokens too
    tokens = []
    handle = model.model.embed_tokens.register_forward_hook(lambda *a: tokens.append(a[1][0].numel()))
    score_responses(Provider(model), "m", responses, "t", LogProbStore(tmp_path / "once"))
    once = sum(tokens)
    sums, _ = score_responses(Provider(model), "m", [*responses, *responses[::-1]], "t", LogProbStore(tmp_path))
    handle.remove()
    assert sum(tokens) == 2 * once
    assert sums[:15].tolist() == sums[15:][::-1].tolist()


def test_the_meter_counts_what_was_computed_and_what_was_known(tmp_path, model, responses):
    meter, store = Meter(), LogProbStore(tmp_path)
    score_responses(Provider(model), "m", responses[:10], "t", store, meter=meter)
    first = meter.copy()
    tokens = first.useful_tokens
    assert tokens > 0
    assert first.record() == {
        "forward_tokens": {"packed_sdpa": tokens},
        "useful_tokens": tokens,
        "scored": 10,
        "stored": 0,
    }
    # What a stage has scored it reads back; the next stage finds it in the store.
    score_responses(Provider(model), "m", responses[5:10], "t", store, meter=meter)
    assert meter.since(first) == Meter()
    meter.begin()
    for _ in range(2):
        score_responses(Provider(model), "m", responses[5:10], "t", store, meter=meter)
    assert meter.since(first) == Meter(stored=5)
    assert total([first.record(), {}, meter.since(first).record()]) == meter
    assert Meter().record() == {}


def test_killed_run_loses_one_chunk_and_ends_with_the_same_values(tmp_path, model, responses):
    whole, _ = score_responses(Provider(model), "m", responses, "t", LogProbStore(tmp_path / "whole"), chunk=4)

    class Killed(BaseException):
        pass

    def dies_in_the_third_chunk(done, total):
        if done == 8:
            raise Killed

    with pytest.raises(Killed):
        score_responses(
            Provider(model),
            "m",
            responses,
            "t",
            LogProbStore(tmp_path / "cut"),
            chunk=4,
            progress=dies_in_the_third_chunk,
        )
    store = LogProbStore(tmp_path / "cut")
    resumed, _ = score_responses(Provider(model), "m", responses, "t", store, chunk=4)
    assert (store.hits, store.misses) == (8, 7)
    assert resumed.tobytes() == whole.tobytes()


def test_nothing_to_score(tmp_path, model):
    provider = Provider(model)
    sums, lengths = score_responses(provider, "m", [], "t", LogProbStore(tmp_path))
    assert sums.shape == lengths.shape == (0,)
    assert provider.calls == 0


def test_errors_say_which_prompts(tmp_path, model, responses):
    bad = Response(responses[0].prompt, np.array([99], np.int32), "", "stop", "offline")
    with pytest.raises(
        ModelError, match=r"prompts '\d' ... '\d', counted from 0: Response \d+ or its prompt has token id 99"
    ):
        score_responses(Provider(model), "m", [*responses, bad], "t", LogProbStore(tmp_path))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (64, r"Lower scoring.token_budget \(now 64\), for example to 32"),
        (4, r"Shorten tokens.max_prompt_tokens or tokens.max_response_tokens"),
    ],
)
def test_out_of_memory_says_what_to_lower(tmp_path, model, responses, monkeypatch, budget, message):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("sera_core.models.score.group_logps", full)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM the responses to prompts .*out of memory.*" + message):
        score_responses(Provider(model), "m", responses, "t", LogProbStore(tmp_path), token_budget=budget)

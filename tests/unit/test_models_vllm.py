"""The vllm generator's side of the bargain, with a stand-in for the engine: requests, refusals, and cleaning up."""

import math
import multiprocessing
import os
import sys
import time
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from sera_core.errors import ConfigError, ModelError
from sera_core.models.generate import engine as rooms
from sera_core.models.generate.seeds import row_seed
from sera_core.models.generate.vllm import VLLM
from sera_core.protocols import GenerationContext, Needs, Sampling
from sera_core.records import Prompt, TextPrompt
from sera_core.testing.tiny import SPECIAL, WORDS, save_tiny_model

VOCAB, STOP = len(SPECIAL + WORDS), 1
SAMPLING = Sampling(samples=2, temperature=0.7, top_p=0.9, max_new_tokens=5)
CONTEXT = GenerationContext(seed=1, iteration=2, purpose="train", stop=(STOP, VOCAB + 1), banned=(2, VOCAB))
PROMPTS = tuple(
    Prompt(name, np.arange(6, 6 + length, dtype=np.int32), TextPrompt(name, "x"))
    for name, length in (("a", 3), ("b", 7))
)


class EngineDeadError(Exception):
    """As vLLM has it: no RuntimeError."""


class FakeLLM:
    """Answers every request with its prompt's length and, where there is room, the stop id."""

    made = fails = environment = child = None
    leaves_child = False

    def __init__(self, **options):
        FakeLLM.made.append(self)
        self.options, self.asked, self.closed = options, [], 0
        FakeLLM.environment = dict(os.environ)
        os.environ["LD_PRELOAD"] = "left behind"
        if FakeLLM.leaves_child:
            FakeLLM.child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
            FakeLLM.child.start()
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self.shutdown))

    def enqueue(self, prompts, parameters, use_tqdm):
        assert not use_tqdm
        self.asked = list(zip(prompts, parameters, strict=True))

    def wait_for_completion(self, use_tqdm):
        if FakeLLM.fails is not None:
            raise FakeLLM.fails
        if use_tqdm:
            bar = use_tqdm(total=len(self.asked), desc="x", dynamic_ncols=True, postfix="y")
            for _ in self.asked:
                bar.update(1)
            bar.close()
        found = [[len(prompt["prompt_token_ids"]), STOP] for prompt, _ in self.asked]
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids)]) for ids in found]

    def shutdown(self, timeout):
        self.closed += 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def fake(monkeypatch):
    """vLLM as far as the generator uses it."""
    names = ("vllm", "vllm.platforms", "vllm.v1", "vllm.v1.engine", "vllm.v1.engine.exceptions")
    modules = {name: ModuleType(name) for name in names}
    modules["vllm"].LLM, modules["vllm"].SamplingParams = FakeLLM, lambda **values: values
    modules["vllm.platforms"].current_platform = SimpleNamespace(is_cpu=lambda: True)
    modules["vllm.v1.engine.exceptions"].EngineDeadError = EngineDeadError
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(rooms, "missing", lambda: None)
    monkeypatch.setattr(rooms, "_SHUTDOWN", 0.01)
    monkeypatch.setattr(FakeLLM, "made", [])
    return modules


def test_one_request_per_sample(folder, fake):
    found = VLLM().generate(folder, PROMPTS, SAMPLING, CONTEXT)
    asked = fake["vllm"].LLM.made[0].asked
    assert [prompt["prompt_token_ids"] for prompt, _ in asked] == [PROMPTS[i].ids.tolist() for i in (0, 0, 1, 1)]
    for (_, parameters), (name, sample) in zip(asked, (("a", 0), ("a", 1), ("b", 0), ("b", 1)), strict=True):
        # The tokenizer's padding, id 0, is banned too; ids without a logit are not vLLM's business.
        assert parameters == {
            "temperature": 0.7,
            "top_p": 0.9,
            "max_tokens": 5,
            "seed": row_seed(1, 2, "train", name, sample) % 2**63,
            "stop_token_ids": [STOP],
            "ignore_eos": True,
            "logit_bias": {0: -math.inf, 2: -math.inf},
            "detokenize": False,
        }
    assert [[r.ids.tolist() for r in group] for group in found.responses] == [[[3, 1]] * 2, [[7, 1]] * 2]
    assert {(r.origin, r.finish_reason, r.ids.dtype.name) for r in found.flat()} == {("policy:2", "stop", "int32")}


@pytest.mark.parametrize(
    ("options", "gpu", "expected"),
    [
        ({}, False, {"kv_cache_memory_bytes": 4 * 2**30, "enforce_eager": True, "gpu_memory_utilization": 0.85}),
        ({}, True, {"kv_cache_memory_bytes": None, "enforce_eager": False, "enable_chunked_prefill": None}),
        ({}, False, {"enable_chunked_prefill": False}),
        ({"kv_cache_gib": 0.5, "enforce_eager": True}, True, {"kv_cache_memory_bytes": 2**29, "enforce_eager": True}),
        ({"gpu_memory_utilization": 0.3, "enforce_eager": False}, False, {"enforce_eager": False}),
    ],
)
def test_the_engine_is_started_for_the_machine(folder, fake, options, gpu, expected):
    fake["vllm.platforms"].current_platform.is_cpu = lambda: not gpu
    VLLM(**options).generate(folder, PROMPTS, SAMPLING, replace(CONTEXT, dtype="bfloat16"))
    started = FakeLLM.made[0].options
    assert expected.items() <= started.items()
    assert (started["model"], started["dtype"], started["max_model_len"]) == (str(folder), "bfloat16", 7 + 5)
    assert started["skip_tokenizer_init"]
    assert started["generation_config"] == "vllm"


def test_progress(folder, fake):
    told = []
    VLLM().generate(folder, PROMPTS, SAMPLING, replace(CONTEXT, progress=lambda *a: told.append(a)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("error", [None, RuntimeError("no kernel\nmore"), EngineDeadError("dead"), ValueError("")])
def test_nothing_stays_behind(folder, fake, monkeypatch, error):
    monkeypatch.setattr(FakeLLM, "fails", error)
    monkeypatch.setattr(FakeLLM, "leaves_child", True)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    before = dict(os.environ)
    if error is None:
        VLLM().generate(folder, PROMPTS, SAMPLING, CONTEXT)
    else:
        said = str(error).split("\n")[0] or "ValueError"
        with pytest.raises(ModelError, match=f"could not run this model: {said} vLLM's own messages"):
            VLLM().generate(folder, PROMPTS, SAMPLING, CONTEXT)
    assert dict(os.environ) == before
    assert FakeLLM.made[0].closed == 1
    assert FakeLLM.child.exitcode is not None
    assert "RANK" not in FakeLLM.environment
    assert FakeLLM.environment["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert FakeLLM.environment["VLLM_LOGGING_LEVEL"] == "INFO"


@pytest.mark.parametrize(("gib", "hidden"), [(None, False), (1.0, True)])
def test_the_option_wins_over_the_older_variable(folder, fake, monkeypatch, gib, hidden):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "9")
    VLLM(kv_cache_gib=gib).generate(folder, PROMPTS, SAMPLING, CONTEXT)
    assert ("VLLM_CPU_KVCACHE_SPACE" not in FakeLLM.environment) == hidden


def test_a_ban_that_was_not_honoured_is_an_error(folder, fake):
    with pytest.raises(ModelError, match=r"vLLM drew the banned token ids \[3, 7\]"):
        VLLM().generate(folder, PROMPTS, SAMPLING, replace(CONTEXT, banned=(3, 7)))


@pytest.mark.skipif(rooms.missing() is None, reason="vLLM is installed here")
def test_without_vllm_the_error_says_what_to_install(folder):
    said = r'needs the package vllm, which is not installed. Run: pip install "sera-core\[vllm\]"'
    with pytest.raises(ModelError, match=said):
        VLLM().generate(folder, PROMPTS, SAMPLING, CONTEXT)
    assert VLLM().unavailable() == rooms.missing()


def test_a_broken_installation_is_an_error(folder, fake, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm.platforms", None)
    with pytest.raises(ModelError, match="installed vllm cannot be imported: .*pip uninstall torchvision"):
        VLLM().generate(folder, PROMPTS, SAMPLING, CONTEXT)


def test_with_vllm_it_is_available(fake, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "vllm" or None)
    assert VLLM().unavailable() is None


def test_no_prompts_need_no_engine(folder):
    assert VLLM().generate(folder, (), SAMPLING, CONTEXT).flat() == ()
    assert VLLM().needs == Needs()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 2.5}, "temperature must be 0, or from 0.01 to 2, .*got 2.5"),
        ({"temperature": 0.001}, "temperature must be 0, or from 0.01 to 2"),
        ({"temperature": 0.0}, "Temperature 0 is greedy"),
        ({"samples": 0}, "samples >= 1"),
    ],
)
def test_refuses_sampling(folder, change, message):
    with pytest.raises(ConfigError, match=message):
        VLLM().generate(folder, PROMPTS, replace(SAMPLING, **change), CONTEXT)


def test_refuses_prompts(folder):
    empty = replace(PROMPTS[0], ids=np.array([], np.int32))
    with pytest.raises(ModelError, match="'a' has no tokens"):
        VLLM().generate(folder, (empty,), SAMPLING, CONTEXT)
    long = replace(PROMPTS[0], ids=np.full(255, 8, np.int32))
    with pytest.raises(ModelError, match="'a' has 255 tokens; with max_new_tokens 5 that passes the model's 256"):
        VLLM().generate(folder, (long,), SAMPLING, CONTEXT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu_memory_utilization": 0.0}, r"gpu_memory_utilization must be a number in \(0, 1\].*got 0.0"),
        ({"gpu_memory_utilization": 1.5}, "got 1.5"),
        ({"kv_cache_gib": 0.0}, "kv_cache_gib must be null or a finite number > 0"),
        ({"kv_cache_gib": math.inf}, "got inf"),
    ],
)
def test_refuses_options(options, message):
    with pytest.raises(ConfigError, match=message):
        VLLM(**options)

"""The vllm generator for real: what it draws, from which seeds, and that nothing of it stays. An engine costs seconds."""

import math
import multiprocessing
import os
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from sera_core.errors import ModelError
from sera_core.models.generate.hf import Transformers
from sera_core.models.generate.vllm import VLLM
from sera_core.models.load import load_policy
from sera_core.protocols import GenerationContext, Sampling
from sera_core.records import Prompt, TextPrompt
from sera_core.testing.tiny import SPECIAL, WORDS, save_tiny_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    # vLLM leaves sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <function Context.__del__"),
]

PAD, STOP, BANNED = SPECIAL.index("<pad>"), SPECIAL.index("<eos>"), (SPECIAL.index("<bos>"), 9)
VOCAB = len(SPECIAL + WORDS)
SAMPLING = Sampling(samples=3, temperature=1.3, top_p=0.95, max_new_tokens=12)
CONTEXT = GenerationContext(seed=5, iteration=2, purpose="train", stop=(STOP, 21), banned=(*BANNED, VOCAB + 7))
SMALL = VLLM(kv_cache_gib=0.25)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return tuple(
        Prompt(f"p{i}", rng.integers(6, VOCAB, 1 + i % 7).astype(np.int32), TextPrompt(f"p{i}", "x")) for i in range(11)
    )


def sampled(candidates):
    return {(r.prompt.id, r.sample): tuple(r.ids.tolist()) for r in candidates.flat()}


@pytest.fixture(scope="module")
def drawn(folder, prompts):
    """All prompts' candidates, with what was there before and after: environment, torch's settings, processes."""
    told = []
    before = state()
    found = SMALL.generate(folder, prompts, SAMPLING, replace(CONTEXT, progress=lambda *a: told.append(a)))
    return found, told, before, state()


def state():
    children = psutil.Process().children(recursive=True)
    return {
        "environment": dict(os.environ),
        "torch": (torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed()),
        "cores": sorted(os.sched_getaffinity(0)),
        # Python's own tracker of shared resources stays until the interpreter ends.
        "processes": [p.name() for p in children if "resource_tracker" not in " ".join(p.cmdline())],
        "started": multiprocessing.active_children(),
    }


def test_more_prompts_than_fit_one_step(folder):
    """vLLM cuts the last prompt of a full step in two by default, and dies of it on a CPU where samples have seeds."""
    rng = np.random.default_rng(1)
    texts = [rng.integers(6, VOCAB, 60).astype(np.int32) for _ in range(100)]
    prompts = tuple(Prompt(f"long{i}", ids, TextPrompt(f"long{i}", "x")) for i, ids in enumerate(texts))
    found = SMALL.generate(folder, prompts, replace(SAMPLING, samples=1, max_new_tokens=3), CONTEXT)
    assert len(sampled(found)) == 100


def test_shape_and_provenance(drawn, prompts):
    assert drawn[0].prompts == prompts
    for prompt, group in zip(prompts, drawn[0].responses, strict=True):
        assert [r.sample for r in group] == [0, 1, 2]
        assert all(r.prompt is prompt and r.origin == "policy:2" and r.ids.dtype == np.int32 for r in group)


def test_stop_length_and_bans(drawn):
    assert {r.finish_reason for r in drawn[0].flat()} == {"stop", "length"}
    assert {int(r.ids[-1]) for r in drawn[0].flat() if r.finish_reason == "stop"} == set(CONTEXT.stop)
    for r in drawn[0].flat():
        stops = np.flatnonzero(np.isin(r.ids, CONTEXT.stop)).tolist()
        assert stops == ([len(r.ids) - 1] if r.finish_reason == "stop" else [])
        assert len(r.ids) == 12 or r.finish_reason == "stop"
        assert not np.isin(r.ids, [*BANNED, PAD]).any()
        assert r.text.split() == [(SPECIAL + WORDS)[i] for i in r.ids.tolist() if i > SPECIAL.index("<unk>")]


def test_progress_counts_finished_samples(drawn):
    told = drawn[1]
    assert told[-1] == (33, 33)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_nothing_of_the_engine_stays(drawn):
    _, _, before, after = drawn
    assert after == before
    assert after["processes"] == []


def test_draws_depend_on_neither_company_nor_order_nor_memory(folder, prompts, drawn):
    few = prompts[4::-2]
    found = sampled(VLLM(kv_cache_gib=0.5).generate(folder, few, replace(SAMPLING, samples=2), CONTEXT))
    expected = {key: ids for key, ids in sampled(drawn[0]).items() if key[0] in ("p0", "p2", "p4") and key[1] < 2}
    assert found == expected


def test_the_seed_decides(folder, prompts, drawn):
    found = sampled(SMALL.generate(folder, prompts, SAMPLING, replace(CONTEXT, seed=6)))
    assert sum(ids != found[key] for key, ids in sampled(drawn[0]).items()) > 25


def test_greedy_equals_transformers(folder, prompts):
    sampling = Sampling(samples=1, temperature=0.0, max_new_tokens=8)
    assert sampled(SMALL.generate(folder, prompts, sampling, CONTEXT)) == sampled(
        Transformers().generate(folder, prompts, sampling, CONTEXT)
    )


def test_first_token_follows_the_model(folder, prompts):
    prompt, count = prompts[3], 600
    copies = tuple(Prompt(f"c{i}", prompt.ids, prompt.source) for i in range(count))
    sampling = Sampling(samples=4, temperature=1.7, top_p=1.0, max_new_tokens=1)
    tokens = [r.ids[0] for r in SMALL.generate(folder, copies, sampling, CONTEXT).flat()]
    with torch.no_grad():
        ids = torch.from_numpy(prompt.ids.astype(np.int64))[None]
        logits = load_policy(folder)(input_ids=ids).logits[0, -1] / 1.7
    logits[[*BANNED, PAD]] = -math.inf
    expected = logits.softmax(0).double().numpy()
    counts = np.bincount(tokens, minlength=VOCAB)
    z = (counts - 4 * count * expected) / np.sqrt(4 * count * expected * (1 - expected) + 1e-9)
    assert counts[[*BANNED, PAD]].tolist() == [0, 0, 0]
    assert np.abs(z[expected > 1e-3]).max() < 4


def narrow(tmp_path, folder):
    """Heads of 8, for which vLLM's attention on a CPU has no kernel: it fails on the first token."""
    return SMALL, save_tiny_model(tmp_path / "narrow")


def crowded(tmp_path, folder):
    """No room for one sequence: the engine does not start."""
    return VLLM(kv_cache_gib=1e-6), folder


@pytest.mark.parametrize("case", [narrow, crowded])
def test_failures_are_errors_that_leave_nothing(case, folder, tmp_path, prompts):
    before = state()
    generator, model = case(tmp_path, folder)
    with pytest.raises(ModelError, match="vLLM could not run this model: .*lower .*generator 'transformers'"):
        generator.generate(model, prompts, SAMPLING, CONTEXT)
    assert state() == before

"""Sampled tokens per second: plain `generate(num_return_sequences=k)`, generator transformers, generator vllm.

SmolLM2-135M answers the first prompts of a preference data set at temperature 0.7 and top_p 0.95. Before anything is
timed, generator transformers must draw the same samples with another batch budget. Then the ways take turns, each turn
with a seed of its own that all ways share, and the mean response lengths must agree within what sampling allows. Loaded
models are timed; what vLLM needs to start is given apart. Ratios are those of one turn, so that all see the same
machine.

    python benchmarks/generation.py [--prompts 16] [--samples 4] [--tokens 64] [--repeats 5] [--data FOLDER]
                                    [--dtype float32] [--json]

The way vllm is left out where it is not installed. Without `--data` the prompts are HH's, in the folder that
SERA_TEST_DATA names (../shared/data beside the repository by default), or sentences made here.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from preference_batches import DATA, data_folder, rotated

from sera_core.data.preferences import Preferences
from sera_core.data.templates import banned_ids, stop_ids
from sera_core.data.tokens import TokenLimits, tokenize_prompts
from sera_core.models.generate import hf
from sera_core.models.generate import vllm as room
from sera_core.models.load import load_policy, load_tokenizer, resolve_model
from sera_core.protocols import GenerationContext, Sampling
from sera_core.records import Message, Prompt, TextPrompt
from sera_core.workspace import default_cache

HH = DATA / "hh_harmless"
LENGTH_SPREAD = 4.0
Drawn = dict[tuple[str, int], tuple[int, ...]]


def main() -> None:
    """Check, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4, help="per prompt")
    parser.add_argument("--tokens", type=int, default=64, help="at most, per sample")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", type=data_folder, help="preference data whose prompts are used")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--kv-cache-gib", type=float, default=2.0, help="vLLM's memory for keys and values")
    parser.add_argument("--json", action="store_true", help="print JSON for programs, nothing else")
    options = parser.parse_args()
    model = resolve_model("smollm2-135m", default_cache())
    tokenizer = load_tokenizer(model)
    prompts, source = chosen_prompts(tokenizer, options.data, options.prompts)
    sampling = Sampling(options.samples, temperature=0.7, top_p=0.95, max_new_tokens=options.tokens)
    context = GenerationContext(
        0, 1, "benchmark", stop=stop_ids(tokenizer), banned=banned_ids(tokenizer), dtype=options.dtype
    )
    ways = {"plain": Plain(model, prompts, sampling), "transformers": ours(model, prompts, sampling)}
    if importlib.util.find_spec("vllm") is not None:
        ways["vllm"] = vllm(model, prompts, sampling, options.kv_cache_gib)
    check_batches(model, prompts, sampling, context)
    runs = measure(ways, context, options.repeats)
    report(runs, prompts, source, as_json=options.json)


def chosen_prompts(tokenizer: Any, data: Path | None, count: int) -> tuple[tuple[Prompt, ...], str]:  # noqa: ANN401
    """`count` different prompts as token ids, at most 448 tokens each, and where they are from."""
    folder = data or (HH if HH.is_dir() else None)
    if folder is None:
        texts = [f"Explain in one paragraph: {'what makes bread rise, and ' * (1 + i * 3)}why." for i in range(count)]
        asked = [TextPrompt(f"p{i}", (Message("user", text),)) for i, text in enumerate(texts)]
    else:
        asked = list({pair.prompt.messages: pair.prompt for pair in Preferences(str(folder)).load(0).pairs}.values())
    limits = TokenLimits(max_prompt_tokens=448, truncation="drop")
    prompts, _ = tokenize_prompts(tokenizer, asked[: 2 * count], limits)
    assert len(prompts) >= count, f"{folder} has only {len(prompts)} usable prompts"
    return prompts[:count], "made here" if folder is None else folder.name


class Plain:
    """What a script does: left-padded prompts, every one `samples` times in one batch."""

    def __init__(self, model: Path, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        self.model, self.prompts, self.sampling = model, prompts, sampling

    def __call__(self, context: GenerationContext) -> tuple[Drawn, float, float]:
        """Samples, seconds of generating, seconds of starting."""
        from transformers import GenerationConfig

        began = time.perf_counter()
        policy: Any = load_policy(self.model, dtype=context.dtype)
        pad = load_tokenizer(self.model).pad_token_id
        loaded = time.perf_counter()
        ids, mask = (t.to(policy.device) for t in hf._left_padded([p.ids for p in self.prompts], pad))
        torch.manual_seed(context.seed)
        settings = GenerationConfig(
            do_sample=True,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            top_k=0,
            num_return_sequences=self.sampling.samples,
            max_new_tokens=self.sampling.max_new_tokens,
            eos_token_id=list(context.stop),
            pad_token_id=pad,
        )
        with torch.inference_mode():
            output = policy.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        lines = hf._cut(output[:, ids.shape[1] :].cpu().numpy().astype(np.int32), context.stop)
        seconds = time.perf_counter() - loaded
        keys = [(prompt.id, k) for prompt in self.prompts for k in range(self.sampling.samples)]
        return {key: tuple(line.tolist()) for key, line in zip(keys, lines, strict=True)}, seconds, loaded - began


def ours(model: Path, prompts: Sequence[Prompt], sampling: Sampling) -> Callable[..., tuple[Drawn, float, float]]:
    """Generator transformers; the model's loading counts as starting."""
    return generator(hf, "_run", lambda context: hf.Transformers().generate(model, prompts, sampling, context))


def vllm(
    model: Path, prompts: Sequence[Prompt], sampling: Sampling, gib: float
) -> Callable[..., tuple[Drawn, float, float]]:
    """Generator vllm; the engine's start and end count as starting."""
    way = room.VLLM(kv_cache_gib=gib)
    return generator(room, "_written", lambda context: way.generate(model, prompts, sampling, context))


def generator(
    module: ModuleType, name: str, call: Callable[[GenerationContext], Any]
) -> Callable[[GenerationContext], tuple[Drawn, float, float]]:
    """A way that calls a generator, of which function `name` of `module` does the generating."""

    def way(context: GenerationContext) -> tuple[Drawn, float, float]:
        began = time.perf_counter()
        with timed(module, name) as spent:
            found = call(context)
        return drawn(found), sum(spent), time.perf_counter() - began - sum(spent)

    return way


@contextmanager
def timed(module: ModuleType, name: str) -> Iterator[list[float]]:
    """Seconds of every call of one function inside the block."""
    original, spent = getattr(module, name), []

    def measured(*arguments: Any) -> Any:  # noqa: ANN401
        began = time.perf_counter()
        result = original(*arguments)
        spent.append(time.perf_counter() - began)
        return result

    setattr(module, name, measured)
    try:
        yield spent
    finally:
        setattr(module, name, original)


def drawn(candidates: Any) -> Drawn:  # noqa: ANN401
    """Token ids of every sample."""
    return {(r.prompt.id, r.sample): tuple(r.ids.tolist()) for r in candidates.flat()}


def check_batches(model: Path, prompts: Sequence[Prompt], sampling: Sampling, context: GenerationContext) -> None:
    """The same samples from one batch and from many."""
    found = [
        drawn(hf.Transformers(token_budget=budget).generate(model, prompts, sampling, context))
        for budget in (10**6, 2048)
    ]
    differing = sum(ids != found[1][key] for key, ids in found[0].items())
    assert differing == 0, f"{differing} of {len(found[0])} samples depend on the batch"


def check_lengths(found: dict[str, Drawn]) -> None:
    """Mean lengths of two ways differ by no more than `LENGTH_SPREAD` standard errors, and one token."""
    lengths = {way: [len(ids) for ids in samples.values()] for way, samples in found.items()}
    for way, own in lengths.items():
        plain = lengths["plain"]
        error = (np.var(own) / len(own) + np.var(plain) / len(plain)) ** 0.5
        gap = abs(np.mean(own) - np.mean(plain))
        assert gap <= LENGTH_SPREAD * error + 1, (
            f"{way}: {np.mean(own):.1f} tokens a sample, plain {np.mean(plain):.1f}"
        )


def measure(
    ways: dict[str, Callable[[GenerationContext], tuple[Drawn, float, float]]], context: GenerationContext, repeats: int
) -> dict[str, list[dict[str, float]]]:
    """Tokens, seconds and seconds of starting, of every way in every turn."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for repeat in range(repeats):
        found: dict[str, Drawn] = {}
        for name in rotated(list(ways), repeat):
            found[name], seconds, start = ways[name](dataclasses.replace(context, seed=repeat))
            tokens = sum(map(len, found[name].values()))
            runs[name].append({"tokens": tokens, "seconds": seconds, "start": start, "rate": tokens / seconds})
        check_lengths(found)
    return runs


def report(runs: dict[str, list[dict[str, float]]], prompts: Sequence[Prompt], source: str, *, as_json: bool) -> None:
    """Medians with their range."""
    lengths = [len(prompt.ids) for prompt in prompts]
    ratios = {
        way: [own["rate"] / plain["rate"] for own, plain in zip(found, runs["plain"], strict=True)]
        for way, found in runs.items()
    }
    facts = {"source": source, "prompt_tokens": {"total": sum(lengths), "longest": max(lengths)}}
    if as_json:
        facts |= {"threads": torch.get_num_threads(), "runs": runs, "ratios": ratios}
        print(json.dumps(facts, indent=1))
        return
    print(f"{len(prompts)} prompts ({source}), {sum(lengths)} tokens, longest {max(lengths)}:")
    print(f"{'way':<13} {'tokens':>7} {'seconds':>8} {'start':>6} {'tokens/s':>9}  {'ratio':>6} (from, to)")
    for way, found in runs.items():
        middle = {key: statistics.median(run[key] for run in found) for key in found[0]}
        print(
            f"{way:<13} {middle['tokens']:>7.0f} {middle['seconds']:>8.1f} {middle['start']:>6.1f} "
            f"{middle['rate']:>9.1f}  {statistics.median(ratios[way]):>6.2f} "
            f"({min(ratios[way]):.2f}, {max(ratios[way]):.2f})"
        )


if __name__ == "__main__":
    main()

"""Peak memory of de-coupled noise detection against plain DPO: SmolLM2-135M, 4 pairs of 512 tokens.

Each way trains two optimiser steps (AdamW, float32) in a process of its own, as many times as `--repeats` says and in
turns; the highest resident memory of each process counts, on a CUDA device the highest allocated memory. De-coupled
detection keeps the reference model beside the policy and mixes both models' token logits 256 response positions at a
time, so that no tensor of batch x length x vocabulary exists. Exit code 1 says that the median ratio exceeds the limit.

    python benchmarks/decoupled_memory.py [--prompt 256] [--response 256] [--pairs 4] [--repeats 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LIMIT = 1.3
WAYS = ("dpo", "decoupled")


def main() -> None:
    """Run both ways in turns and print their peaks; exit code 1 where their ratio is above `LIMIT`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=256, help="tokens per prompt")
    parser.add_argument("--response", type=int, default=256, help="tokens per response")
    parser.add_argument("--pairs", type=int, default=4, help="pairs per optimiser step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.prompt, options.response, options.pairs)))
        return
    sizes = [f"--{name}={getattr(options, name)}" for name in ("prompt", "response", "pairs")]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for way in WAYS:
            command = [sys.executable, __file__, f"--way={way}", *sizes]
            done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603  # this very file
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    sys.exit(report(found, as_json=options.json) > LIMIT)


def measure(way: str, prompt: int, response: int, pairs: int) -> dict[str, float]:
    """Peak memory in GiB, seconds and the last loss of two optimiser steps of one way."""
    import torch

    from sera_core.builtin.dpo import DPO
    from sera_core.builtin.smoothers import NoSmoothing
    from sera_core.builtin.uniform import Uniform
    from sera_core.models.load import load_policy, load_tokenizer, resolve_model
    from sera_core.train.run import TrainRequest, train
    from sera_core.train.step import Algebra
    from sera_core.workspace import default_cache
    from sera_plugin_spa.refinement import SelfRefinement

    path = resolve_model("smollm2-135m", default_cache())
    data = random_pairs(pairs, prompt, response)
    steps: list[Any] = []
    # In the first step the policy is its own reference and nothing is extrapolated; the second detects and smooths.
    smoother = NoSmoothing() if way == "dpo" else SelfRefinement(extrapolation=0.5, warmup=0.0)
    with tempfile.TemporaryDirectory() as folder:
        request = TrainRequest(
            pairs=data,
            reference=reference(path, data),
            algebra=Algebra(DPO(), (), smoother, Uniform()),
            training={"max_steps": 2, "per_device_train_batch_size": pairs, "learning_rate": 1e-5},
            seed=0,
            iteration=1,
            workdir=Path(folder),
            load_model=lambda: load_policy(path),
            tokenizer=load_tokenizer(path),
            policy_is_reference=True,
            card="",
            load_reference=lambda: load_policy(path),
        )
        began = time.perf_counter()
        train(request, steps.append)
        seconds = time.perf_counter() - began
    # Both ways start as the same DPO step: the policy is its reference, so nothing is doubtful yet.
    assert abs(steps[0].metrics["loss"] - 0.6931) < 1e-3, steps[0].metrics
    assert way == "dpo" or steps[-1].metrics["threshold"] != 0.5, steps[-1].metrics
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**30
    return {"peak_gib": peak, "seconds": seconds, "loss": steps[-1].metrics["loss"]}


def random_pairs(count: int, prompt: int, response: int) -> Any:  # noqa: ANN401
    """Twice `count` pairs of random tokens of the given lengths: those of two steps, each seen once."""
    import numpy as np

    from sera_core.records import Pair, Pairs, Prompt, Response, TextPrompt

    rng = np.random.default_rng(0)

    def ids(length: int) -> np.ndarray:
        return rng.integers(100, 40_000, length).astype(np.int32)

    found = []
    for i in range(2 * count):
        asked = Prompt(f"p{i}", ids(prompt), TextPrompt(f"p{i}", ""))
        chosen, rejected = (Response(asked, ids(response), "", "given", "offline") for _ in range(2))
        found.append(Pair(f"pair{i}", chosen, rejected, "random", ""))
    return Pairs(tuple(found))


def reference(path: Path, data: Any) -> Any:  # noqa: ANN401
    """Stored reference log-probs of both sides, float32."""
    import torch

    from sera_core.models.load import load_policy
    from sera_core.models.logps import Group, group_logps

    model = load_policy(path)
    groups = [Group(pair.prompt.ids, (pair.chosen.ids, pair.rejected.ids)) for pair in data.pairs]
    with torch.inference_mode():
        sums = group_logps(model, groups, token_budget=1024).sums.cpu().numpy()
    return sums[0::2], sums[1::2]


def report(found: dict[str, list[dict[str, float]]], *, as_json: bool) -> float:
    """Print medians with their range; the median ratio, to be held against `LIMIT`."""
    peaks = {way: [run["peak_gib"] for run in runs] for way, runs in found.items()}
    ratios = [own / base for own, base in zip(peaks["decoupled"], peaks["dpo"], strict=True)]
    ratio = statistics.median(ratios)
    if as_json:
        print(json.dumps({"runs": found, "ratio": ratio, "limit": LIMIT}, indent=1))
        return ratio
    for way, runs in found.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        low, high = min(peaks[way]), max(peaks[way])
        print(f"{way:10} {statistics.median(peaks[way]):6.2f} GiB ({low:.2f} to {high:.2f}), {seconds:6.1f} s")
    print(f"ratio      {ratio:6.3f} ({min(ratios):.3f} to {max(ratios):.3f}); at most {LIMIT}")
    return ratio


if __name__ == "__main__":
    main()

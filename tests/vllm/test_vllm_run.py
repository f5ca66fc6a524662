"""One iteration of SeRA from the command line, its pairs drawn by vLLM."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sera_core.testing.tiny import WORDS

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

SETTINGS = (
    "loop.iterations=2",
    "tokens.max_prompt_tokens=32",
    "tokens.max_response_tokens=16",
    "training.per_device_train_batch_size=4",
    "training.gradient_accumulation_steps=1",
    "training.learning_rate=1.0e-3",
    "training.num_train_epochs=1",
    "generated.samples=2",
    "generated.max_new_tokens=8",
    "generated.from_iteration=2",
    "generated.generator={name: vllm, kv_cache_gib: 0.25}",
    "evaluation.sampling.samples=1",
    "evaluation.sampling.max_new_tokens=8",
)


def write_pairs(path):
    words = [word for word in WORDS if word not in ("what", "is")]
    rows = [
        {
            "prompt": [{"role": "user", "content": f"what is {first} and {second}"}],
            "chosen": [{"role": "assistant", "content": f"{first} is {second}"}],
            "rejected": [{"role": "assistant", "content": f"not {second} or red"}],
        }
        for first, second in itertools.islice(itertools.permutations(words, 2), 30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_sera_iteration(folder, tmp_path):
    arguments = ["sera-dpo", f"source={write_pairs(tmp_path / 'pairs.jsonl')}", f"policy.model={folder}", *SETTINGS]
    kept = {name: value for name, value in os.environ.items() if name not in ("SERA_PLUGINS", "SERA_CACHE")}
    done = subprocess.run(
        [Path(sys.executable).with_name("sera"), "run", *arguments, "--out", tmp_path / "run"],
        capture_output=True,
        text=True,
        timeout=500,
        env=kept | {"HF_HUB_OFFLINE": "1", "SERA_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["iterations"][1]["pairs_generated"] > 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    assert "generator:vllm" in json.dumps(manifest)
    assert (tmp_path / "run" / "iter_2" / "generate" / "candidates.arrow").exists()

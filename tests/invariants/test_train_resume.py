"""Kill -9 at any moment and train again: the same bytes as without."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("train_killed.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path_factory.mktemp("killed"))],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("kind", "moment", "resumed"),
    [
        ("full", "step 1", 0),
        ("full", "step 2", 0),
        ("full", "step 4", 2),
        ("full", "step 5", 4),
        ("full", "mid-checkpoint", 0),
        ("full", "sealed", 4),
        ("full", "mid-save", 6),
        ("full", "replaced", 6),
        ("full", "mid-delete", 0),
        ("lora", "step 5", 4),
        ("lora", "mid-save", 6),
        ("dataset", "step 3", 2),
        ("dataset", "step 5", 4),
        ("dataset", "step 6", 4),
        ("dataset", "mid-save", 6),
        ("refined", "step 3", 2),
        ("refined", "step 5", 4),
        ("refined-dataset", "step 5", 4),
    ],
)
def test_killed_and_continued_gives_the_same_bytes(results, kind, moment, resumed):
    killed, whole = results[f"{kind} {moment}"], results[f"{kind} None"]
    assert killed["signal"] == signal.SIGKILL
    assert killed["resumed"] == resumed
    assert killed["digests"] == whole["digests"]
    assert killed["left"] == whole["left"] == ["model", "pairs.arrow", "steps.jsonl"]


def test_the_recipes_differ(results):
    whole = [tuple(result["digests"]) for name, result in results.items() if name.endswith(" None")]
    assert len(set(whole)) == len(whole) == 5

"""Two processes train what one process trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sera_core.evidence import read_evidence

SCRIPT = str(Path(__file__).with_name("train_ranks.py"))
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def run(*command):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_ranks_train_what_one_trains(tmp_path):
    run(SCRIPT, tmp_path / "one", 8, 1)
    run(*TORCHRUN, SCRIPT, tmp_path / "two", 2, 2)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert {"dpo", "refined", "refined dataset", "refined lora"} < set(names)
    for name in names:
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        weights, others = (load_file(folder / "model" / "model.safetensors") for folder in (one, two))
        for key, value in weights.items():
            torch.testing.assert_close(value, others[key], rtol=1e-5, atol=1e-5)
        records, other_records = (
            [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()] for folder in (one, two)
        )
        assert len(records) == len(other_records) == 6
        for record, other in zip(records, other_records, strict=True):
            assert record == pytest.approx(other, rel=1e-4, abs=1e-4)
        if name.startswith("refined"):
            assert sum(record.get("flip_mean", 0) > 0 for record in records) >= 2, "refinement must have acted"
        rows, other_rows = (read_evidence(folder / "pairs.arrow").to_pylist() for folder in (one, two))
        assert len(rows) == len(other_rows) == 17
        assert [row["pair"] for row in rows] == [row["pair"] for row in other_rows]
        for column in ("margin", "confidence", "weight", "flip"):
            found, others = ([row[column] for row in part] for part in (rows, other_rows))
            assert found == pytest.approx(others, rel=1e-4, abs=1e-4)
    for name in ("whole", "dataset", "refined", "refined lora"):
        # Every rank keeps the state it would have alone: a filler leaves no trace.
        (one,) = (json.loads(path.read_text()) for path in (tmp_path / "one" / name).glob("smoother-*.json"))
        states = [json.loads((tmp_path / "two" / name / f"smoother-{rank}.json").read_text()) for rank in (0, 1)]
        assert states[0] == states[1]
        assert states[0].keys() == one.keys()
        assert all(states[0][key] == pytest.approx(value, abs=1e-5) for key, value in one.items())
    (first, *rest) = [
        json.loads(line) for line in (tmp_path / "two" / "dataset" / "steps.jsonl").read_text().splitlines()
    ]
    assert first["seen"] == 17
    assert [record["reweighted_at"] for record in rest] == [1, 3, 3, 5, 5]

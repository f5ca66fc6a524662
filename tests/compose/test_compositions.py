"""Any loss goes with any transform, smoother and reweighter by names alone, or is refused before any compute."""

from __future__ import annotations

import json
import math

import pytest
import torch
from compositions import ALL, settings, write_pairs
from safetensors.torch import load_file

import sera_core
from sera_core.errors import ConfigError
from sera_core.testing.tiny import save_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compose")
    return folder, save_tiny_model(folder / "policy"), write_pairs(folder / "pairs.jsonl")


def run(place, objective, out):
    folder, model, pairs = place
    result = sera_core.run(settings(pairs, model, objective), out=out, cache=folder / "cache")
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(steps) == 2
    assert all(math.isfinite(value) for step in steps for value in step.values())
    before, after = load_file(model / "model.safetensors"), load_file(result.model / "model.safetensors")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.isfinite(value).all() for value in after.values())


@pytest.mark.parametrize("combination", [c for c in ALL if c.valid], ids=str)
def test_it_trains(combination, place, tmp_path):
    run(place, combination.objective(), tmp_path)


@pytest.mark.parametrize("combination", [c for c in ALL if not c.valid], ids=str)
def test_it_is_refused_before_any_compute_and_trains_without_what_was_refused(combination, place, tmp_path):
    with pytest.raises(ConfigError, match=f"objective '{combination.loss}' has no reference. Set its extrapolation to"):
        run(place, combination.objective(), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    run(place, combination.objective(extrapolation=0), tmp_path / "trained")

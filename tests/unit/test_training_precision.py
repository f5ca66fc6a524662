"""References in half precision are computed as training computes the policy, so that only training moves the margin."""

import json

import pytest
import torch
from judge_models import opened, save_model, settings, write_scored

import sera_core
from sera_core.curate.score import both_sides
from sera_core.errors import ModelError
from sera_core.models.load import load_policy
from sera_core.models.logps import Group, group_logps
from sera_core.train.precision import autocast_dtype

HALF = {
    "autocast": ("training.bf16=true",),
    "policy": ("policy.dtype=bfloat16",),
    "adapter": ("policy.dtype=bfloat16", "policy.lora.r=2"),
    "adapter-autocast": ("policy.dtype=bfloat16", "policy.lora.r=2", "training.bf16=true"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    save_model(folder / "policy")
    return write_scored(folder / "pairs.jsonl"), folder / "policy"


@pytest.mark.parametrize("more", HALF.values(), ids=HALF)
def test_a_policy_that_stands_still_keeps_a_margin_of_zero(tmp_path, data, more):
    still = settings("dpo", *data, "training.learning_rate=1.0e-30", *more)
    with pytest.raises(ModelError, match="No parameter moved"):
        sera_core.run(still, out=tmp_path / "run", cache=tmp_path / "cache")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    margins = [row["margin_mean"] for row in map(json.loads, lines) if "margin_mean" in row]
    assert len(margins) >= 3
    assert margins == [0.0] * len(margins)


def test_precisions_are_stored_apart(tmp_path, data):
    with opened(tmp_path, settings("dpo", *data)) as run:
        responses = both_sides(run.data.pairs.pairs)
        half, plain = run.training_logps(run.initial, responses, {"bf16": True}), run.logps(run.initial, responses)
        model = load_policy(data[1])
        groups = [Group(response.prompt.ids, (response.ids,)) for response in responses]
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            expected = group_logps(model, groups).sums.numpy()
        assert half == pytest.approx(expected, rel=1e-2)
        assert abs(half - plain).max() > 1e-3
        assert (run.training_logps(run.initial, responses, {"bf16": True}) == half).all()


def test_without_autocast_training_shares_the_log_probs_of_everything_else(tmp_path, data):
    with opened(tmp_path, settings("dpo", *data)) as run:
        responses = both_sides(run.data.pairs.pairs)
        run.logps(run.initial, responses)
        scored = run.workspace.meter.scored
        run.training_logps(run.initial, responses, {})
        assert run.workspace.meter.scored == scored


@pytest.mark.parametrize(
    ("dtype", "training", "adapter", "expected"),
    [
        (torch.float32, {}, False, None),
        (torch.float32, {"bf16": True}, True, torch.bfloat16),
        (torch.float32, {"fp16": True}, False, torch.float16),
        (torch.bfloat16, {}, False, torch.bfloat16),
        (torch.bfloat16, {}, True, None),
        (torch.bfloat16, {"bf16": False}, False, None),
        (torch.float16, {}, True, torch.float16),
    ],
)
def test_autocast_dtype(dtype, training, adapter, expected):
    assert autocast_dtype(dtype, training, adapter) is expected

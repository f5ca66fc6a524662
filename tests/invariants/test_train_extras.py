"""What transforms and smoothers are given beside the policy's log-probs: prompts under prefixes, an extrapolated policy,
the whole training set."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import train_cases as cases

from sera_core.builtin.ipo import IPO
from sera_core.builtin.orpo import ORPO
from sera_core.builtin.simpo import SimPO
from sera_core.errors import ConfigError, ModelError
from sera_core.protocols import Needs
from sera_core.records import Smoothed
from sera_core.train.lora import LoraOptions
from sera_core.train.run import train

ONE = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
EIGHT = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
SGD = {"optim": "sgd", "learning_rate": 0.05}


@dataclasses.dataclass(frozen=True)
class Refined:
    """Subtracts the margin under a prefix, and keeps what it was shown."""

    strength: float = 0.5

    def __post_init__(self):
        object.__setattr__(self, "shown", [])

    @property
    def needs(self):
        return Needs(prefixes=(cases.PREFIX,))

    def apply(self, margins, batch):
        self.shown.append((batch.progress, batch.prefixed[cases.PREFIX]))
        assert not batch.prefixed[cases.PREFIX].requires_grad
        return margins - self.strength * batch.prefixed[cases.PREFIX]


@dataclasses.dataclass
class Doubting:
    """Smooths the less confident half of what it is shown, by a running state, and keeps what it was shown."""

    extrapolation: float = 0.0
    every: float = 0.0

    def __post_init__(self):
        self.shown, self.calls = [], 0

    @property
    def needs(self):
        return Needs(extrapolation=self.extrapolation, dataset_every=self.every)

    def flip_weights(self, confidence, batch):
        told = self.smooth(confidence, batch)
        return told.keep, told.flip

    def smooth(self, confidence, batch):
        self.shown.append(confidence)
        self.calls += 1
        flip = 0.2 * (confidence < confidence.median()).float()
        return Smoothed(1 - flip, flip, {"lowest": confidence.min(), "asked": self.calls})

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


def trained(folder, algebra, on_step=None, **changes):
    records = []
    pairs = cases.make_pairs(flipped=(True, False))
    asks = any(transform.needs.prefixes for transform in algebra.transforms)
    model = cases.tiny_model() if algebra.objective.needs.reference else None
    request = cases.request(
        folder,
        pairs=pairs,
        algebra=algebra,
        prefixed=cases.prefixed(pairs, model) if asks else {},
        load_reference=cases.tiny_model,
        **changes,
    )
    result = train(request, on_step or records.append)
    return result, [record.metrics for record in records]


def weights(result):
    from safetensors.torch import load_file

    return torch.cat([value.flatten() for value in load_file(result.model / "model.safetensors").values()])


@pytest.mark.parametrize("lora", [None, LoraOptions(r=2)])
@pytest.mark.parametrize(
    "build",
    [
        lambda: cases.algebra(transforms=(Refined(),)),
        lambda: cases.algebra(smoother=Doubting(0.5)),
        lambda: cases.algebra(transforms=(Refined(),), smoother=Doubting(0.5), reweighter=cases.Softmax()),
        lambda: cases.algebra(objective=IPO(), transforms=(Refined(),), smoother=Doubting(every=0.5)),
        lambda: cases.algebra(objective=SimPO(), transforms=(Refined(),), smoother=Doubting()),
        lambda: cases.algebra(objective=ORPO(), transforms=(Refined(),)),
    ],
)
def test_splitting_the_batch_changes_nothing(tmp_path, build, lora):
    once, records = trained(tmp_path / "once", build(), training=ONE | SGD, lora=lora)
    split, others = trained(tmp_path / "split", build(), training=EIGHT | SGD, lora=lora)
    torch.testing.assert_close(weights(split), weights(once), rtol=1e-5, atol=1e-6)
    assert len(records) == len(others) == 6
    for one, other in zip(records, others, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_margins_under_a_prefix_are_the_objectives_and_zero_at_the_start(tmp_path):
    transform = Refined(strength=0.0)
    result, _ = trained(tmp_path, cases.algebra(transforms=(transform,)), training=ONE | {"max_steps": 2} | SGD)
    first, second = transform.shown
    assert first[0] == 0.0
    assert first[1].tolist() == [0.0] * 8
    assert second[0] == 0.5
    assert second[1].abs().max() > 1e-3
    assert result.steps == 2


def test_a_warm_up_step_without_a_rate_leaves_the_policy_its_own_reference(tmp_path):
    smoother = Doubting(0.5)
    warm = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}
    _, records = trained(tmp_path, cases.algebra(smoother=smoother), training=ONE | SGD | warm)
    assert [record["margin_mean"] == 0 for record in records] == [True, True, False, False, False, False]
    assert [set(shown.tolist()) == {0.5} for shown in smoother.shown] == [True, True, False, False, False, False]


def test_strength_zero_is_the_base_method_bit_for_bit(tmp_path):
    base, _ = trained(tmp_path / "base", cases.algebra())
    refined, _ = trained(tmp_path / "refined", cases.algebra(transforms=(Refined(0.0),)))
    assert (base.model / "model.safetensors").read_bytes() == (refined.model / "model.safetensors").read_bytes()


def test_the_prefixed_reference_must_belong_to_the_policy(tmp_path):
    pairs = cases.make_pairs()
    request = cases.request(
        tmp_path,
        pairs=pairs,
        algebra=cases.algebra(transforms=(Refined(),)),
        prefixed=cases.prefixed(pairs, cases.tiny_model(seed=5)),
    )
    with pytest.raises(ModelError, match="stored reference does not belong"):
        train(request, cases.ignore)


@pytest.mark.parametrize("lora", [None, LoraOptions(r=2)])
def test_the_smoother_reads_the_extrapolated_policy(tmp_path, lora):
    plain, far = Doubting(), Doubting(0.5)
    own, _ = trained(tmp_path / "plain", cases.algebra(smoother=plain), training=ONE | SGD, lora=lora)
    _, records = trained(tmp_path / "far", cases.algebra(smoother=far), training=ONE | SGD, lora=lora)
    assert own.steps == len(plain.shown) == len(far.shown) == 6
    assert far.shown[0].tolist() == plain.shown[0].tolist() == [0.5] * 8  # nothing has moved yet
    # The first steps are the same step, so that these are two readings of one policy; the further one exaggerates.
    later, nearer = (each.shown[1] - 0.5 for each in (far, plain))
    assert later.abs().mean() > 1.2 * nearer.abs().mean() > 0
    assert records[1]["lowest"] == pytest.approx(float(far.shown[1].min()))
    assert [record["asked"] for record in records] == [1, 2, 3, 4, 5, 6]


def test_no_extrapolation_loads_no_reference_model(tmp_path):
    loads = []

    def load():
        loads.append(1)
        return cases.tiny_model()

    for smoother, lora, expected in (
        (Doubting(), None, 0),
        (Doubting(0.5), None, 1),
        (Doubting(0.5), LoraOptions(r=2), 0),
    ):
        loads.clear()
        request = cases.request(
            tmp_path / f"{expected}{lora is None}",
            algebra=cases.algebra(smoother=smoother),
            load_reference=load,
            lora=lora,
        )
        train(request, cases.ignore)
        assert len(loads) == expected


def test_the_reference_model_is_needed_where_it_is_used(tmp_path):
    request = cases.request(tmp_path, algebra=cases.algebra(smoother=Doubting(0.5)))
    with pytest.raises(ConfigError, match="none was given"):
        train(request, cases.ignore)


def test_a_smoother_of_the_whole_training_set(tmp_path):
    smoother = Doubting(every=1.0)
    _, records = trained(tmp_path, cases.algebra(smoother=smoother), training=EIGHT | SGD)
    assert [len(shown) for shown in smoother.shown] == [20, 20]
    assert [record["resmoothed_at"] for record in records] == [1, 1, 1, 4, 4, 4]
    assert all(value == 0.5 for value in smoother.shown[0].tolist())
    assert [record.get("flip_mean", 0) > 0 for record in records[:3]] == [False] * 3
    assert any(record.get("flip_mean", 0) > 0 for record in records[3:])
    assert sum("lowest" in record for record in records) == 2


def test_both_smoother_and_reweighter_of_the_whole_training_set(tmp_path):
    smoother, reweighter = Doubting(every=0.5), cases.Telling(every=1.0)
    _, records = trained(tmp_path, cases.algebra(smoother=smoother, reweighter=reweighter), training=ONE | SGD)
    assert [record["reweighted_at"] for record in records] == [1, 1, 1, 4, 4, 4]
    assert [record["resmoothed_at"] for record in records] == [1, 1, 3, 3, 5, 5]


def test_a_killed_run_continues_with_the_state_of_its_smoothers(tmp_path):
    class StoppedError(Exception):
        pass

    def stop(record):
        if record.step == 5:
            raise StoppedError

    def algebra():
        return cases.algebra(transforms=(Refined(),), smoother=Doubting(0.5, every=0.5))

    whole, _ = trained(tmp_path / "whole", algebra(), checkpoint_every=2)
    with pytest.raises(StoppedError):
        trained(tmp_path / "killed", algebra(), on_step=stop, checkpoint_every=2)
    state = json.loads((tmp_path / "killed" / "checkpoint-4" / "components.json").read_text())
    assert set(state) == {"smoother", "dataset split", "pairs last seen"}
    resumed, _ = trained(tmp_path / "killed", algebra(), checkpoint_every=2)
    assert resumed.resumed_from == 4
    for name in ("model/model.safetensors", "steps.jsonl", "pairs.arrow"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert whole.steps == resumed.steps

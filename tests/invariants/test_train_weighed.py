"""What reweighters see and when: the effective batch without a second pass where it can be, or the whole training set."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
import train_cases as cases

from sera_core.builtin.smoothers import Constant
from sera_core.errors import ModelError
from sera_core.records import Weighted
from sera_core.train.lora import LoraOptions
from sera_core.train.measuring import Measurer
from sera_core.train.run import train
from sera_core.train.trainer import PairTrainer

MIXED = (True, False, None)


def trained(folder, **changes):
    records = []
    changes = {"pairs": cases.make_pairs(flipped=MIXED)} | changes
    result = train(cases.request(folder, **changes), records.append)
    return result, [record.metrics for record in records]


def contents(result):
    return (result.model / "model.safetensors").read_bytes(), result.steps_file.read_bytes()


@dataclasses.dataclass(frozen=True)
class Seen(cases.Telling):
    """Keeps everything it was shown."""

    def __post_init__(self):
        object.__setattr__(self, "shown", [])

    def weights(self, stats):
        self.shown.append(stats)
        return super().weights(stats)


@pytest.mark.parametrize("lora", [None, LoraOptions(r=2)])
@pytest.mark.parametrize("smoother", [lambda: Constant(0.1), cases.MovingThreshold])
def test_one_micro_batch_needs_no_second_pass(tmp_path, monkeypatch, lora, smoother):
    passes = []
    logps = Measurer.logps

    def spy(measurer, model, answers):
        passes.append(torch.is_grad_enabled())
        return logps(measurer, model, answers)

    monkeypatch.setattr(Measurer, "logps", spy)

    def run(folder):
        passes.clear()
        algebra = cases.algebra(smoother=smoother(), reweighter=cases.Telling())
        return contents(trained(tmp_path / folder, algebra=algebra, lora=lora)[0])

    # Two epochs of three steps, and the live reference of the first.
    once = run("once")
    assert (passes.count(True), passes.count(False)) == (6, 1)
    monkeypatch.setattr(PairTrainer, "_alone", lambda _: False)
    assert run("twice") == once
    assert (passes.count(True), passes.count(False)) == (6, 7)


@pytest.mark.parametrize("split", [{}, {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3}])
def test_the_reweighter_is_asked_once_per_step(tmp_path, split):
    seen = Seen()
    _, records = trained(tmp_path, algebra=cases.algebra(reweighter=seen), training=split)
    assert len(seen.shown) == len(records) == 6
    assert [record["seen"] for record in records] == [record["pairs"] for record in records]
    for stats, record in zip(seen.shown, records, strict=True):
        assert record["hardest"] == float(stats.losses.max())
        assert record["progress_seen"] == stats.progress
        assert record["weight_mean"] == pytest.approx(1.0, abs=1e-6)
        known = stats.flipped[~stats.flipped.isnan()]
        assert record["flipped_share"] == pytest.approx(float(known.mean()), abs=1e-6)
        weights = torch.softmax(stats.losses / 0.1, 0) * len(stats.losses)
        for kind, value in {"weight_flipped": 1, "weight_clean": 0}.items():
            mean = float(weights[stats.flipped == value].mean())
            assert record.get(kind, math.nan) == pytest.approx(mean, rel=1e-4, nan_ok=True)
    assert "flip_mean" not in records[-1]


def test_a_smoother_is_reported_without_a_reweighter(tmp_path):
    _, records = trained(tmp_path / "some", algebra=cases.algebra(smoother=Constant(0.1)))
    assert records[-1]["flip_mean"] == records[-1]["flip_flipped"] == pytest.approx(0.1)
    assert not any(name.startswith("weight") for name in records[-1])
    _, plain = trained(tmp_path / "none")
    assert not any("flip" in name or "weight" in name for name in plain[-1])


@pytest.mark.parametrize(
    ("every", "measured"),
    [(0.1, [1, 2, 3, 4, 5, 6]), (0.6, [1, 1, 3, 3, 5, 5]), (1.0, [1, 1, 1, 4, 4, 4]), (9.0, [1] * 6)],
)
def test_the_training_set_is_measured_on_time(tmp_path, every, measured):
    seen = Seen(every=every)
    _, records = trained(tmp_path, algebra=cases.algebra(reweighter=seen))
    assert [record["reweighted_at"] for record in records] == measured
    assert [stats.progress for stats in seen.shown] == [(step - 1) / 6 for step in sorted(set(measured))]
    # What the reweighter says belongs to the step at which it was asked.
    for step, (record, at) in enumerate(zip(records, measured, strict=True), start=1):
        assert ("seen" in record) == (step == at)
        assert record.get("seen", 20) == 20


@pytest.mark.parametrize("lora", [None, LoraOptions(r=2, dropout=0.3)])
def test_the_training_set_is_measured_in_order_and_without_dropout(tmp_path, lora):
    pairs, seen = cases.make_pairs(flipped=MIXED), Seen(every=2.0)
    chosen, rejected = (-3.0 - torch.arange(20.0)).numpy(), (-30.0 + torch.arange(20.0)).numpy()
    load = lambda: cases.tiny_model(attention_dropout=0.3)  # noqa: E731
    train(
        cases.request(
            tmp_path,
            pairs=pairs,
            load_model=load,
            lora=lora,
            algebra=cases.algebra(reweighter=seen),
            reference=(chosen, rejected),
            policy_is_reference=False,
            keep_dropout=True,
        ),
        cases.ignore,
    )
    (stats,) = seen.shown
    ours = [torch.from_numpy(side) for side in cases.measure(load(), pairs)]
    margins = ours[0] - torch.from_numpy(chosen) - ours[1] + torch.from_numpy(rejected)
    torch.testing.assert_close(stats.margins, margins, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(stats.losses, -torch.nn.functional.logsigmoid(0.1 * margins), rtol=1e-5, atol=1e-5)
    assert stats.flipped.nan_to_num(2.0).tolist() == [1.0, 0.0, 2.0] * 6 + [1.0, 0.0]
    assert not stats.losses.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_training_set_at_its_own_reference_weighs_one(tmp_path, dtype):
    load = lambda: cases.tiny_model().to(dtype)  # noqa: E731
    seen = Seen(every=1.0)
    _, records = trained(tmp_path, load_model=load, algebra=cases.algebra(reweighter=seen))
    assert not seen.shown[0].margins.any()
    assert seen.shown[1].margins.any()
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert records[0]["weight_max"] == pytest.approx(1.0, abs=1e-6)
    assert records[3]["weight_max"] > 1.01


@dataclasses.dataclass(frozen=True)
class Numbered(cases.Telling):
    """Weighs pair i of the training set i + 1."""

    def weights(self, stats):
        return torch.arange(1.0, len(stats.losses) + 1)

    def weigh(self, stats):
        return Weighted(self.weights(stats), {"seen": len(stats.losses)})


@pytest.mark.parametrize("split", [{}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}])
def test_every_pair_trains_with_its_own_weight(tmp_path, monkeypatch, split):
    given = {}
    weights = PairTrainer._weights

    def spy(trainer, inputs, *rest):
        found = weights(trainer, inputs, *rest)
        given.update(zip(inputs.ids, found.tolist(), strict=True))
        return found

    monkeypatch.setattr(PairTrainer, "_weights", spy)
    reweighter = Numbered(every=1.0)
    _, records = trained(tmp_path, algebra=cases.algebra(reweighter=reweighter), training=split)
    assert given == {f"pair{i}": i + 1 for i in range(20)}
    assert sum(record["weight_mean"] * record["pairs"] for record in records[:3]) == pytest.approx(210)


class Loud(cases.Softmax):
    def weigh(self, stats):
        return Weighted(self.weights(stats), {"loss": 1.0})


class Lost(cases.Softmax):
    def weights(self, stats):
        return super().weights(stats) * torch.nan


@pytest.mark.parametrize(
    ("reweighter", "message"),
    [
        (Loud(), "Loud reports the metric 'loss', which the step record has itself"),
        (Lost(), "Lost gave a pair the weight"),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_unusable_answer_stops_training_before_the_update(tmp_path, reweighter, message, accumulate):
    fields = {"gradient_accumulation_steps": accumulate}
    with pytest.raises(ModelError, match=message):
        trained(tmp_path, algebra=cases.algebra(reweighter=reweighter), training=fields)
    assert (tmp_path / "steps.jsonl").read_bytes() == b""


def test_a_checkpoint_holds_the_weights_of_the_training_set(tmp_path):
    class StoppedError(Exception):
        pass

    def stop(record):
        if record.step == 5:
            raise StoppedError

    algebra = cases.algebra(reweighter=cases.Telling(every=1.0))
    with pytest.raises(StoppedError):
        train(cases.request(tmp_path, algebra=algebra, checkpoint_every=2), stop)
    state = json.loads((tmp_path / "checkpoint-4" / "components.json").read_text())["dataset weights"]
    assert state["measured_at"] == 4
    (weights,) = state["values"]
    assert len(weights) == 20
    assert sum(weights) == pytest.approx(20, rel=1e-5)

"""The step-0 check: while the policy is its own reference every margin is exactly 0."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import train_cases as cases
from transformers import AutoModelForCausalLM

from sera_core.builtin.dpo import DPO
from sera_core.builtin.ipo import IPO
from sera_core.builtin.simpo import SimPO
from sera_core.errors import ConfigError, ModelError, StoreError
from sera_core.train.lora import LoraOptions
from sera_core.train.run import train

LOG2 = float(torch.tensor(2.0).log())


def first_step(folder, **changes):
    records = []
    train(cases.request(folder, **changes), records.append)
    return records[0].metrics


@pytest.mark.parametrize("lora", [None, LoraOptions(r=2), LoraOptions(r=2, dropout=0.5)])
@pytest.mark.parametrize("reweighter", [None, cases.Softmax()])
def test_first_margin_is_exactly_zero_and_first_loss_exactly_log_two(tmp_path, lora, reweighter):
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    metrics = first_step(tmp_path, lora=lora, training=split, algebra=cases.algebra(reweighter=reweighter))
    assert metrics["margin_mean"] == 0.0
    assert metrics["accuracy"] == 0.5
    assert metrics["chosen_log_ratio"] == metrics["rejected_log_ratio"] == 0.0
    assert metrics["chosen_below_reference"] == 0.0
    assert metrics["loss"] == pytest.approx(LOG2, abs=1e-12)


def test_rounding_of_the_stored_reference_is_tolerated(tmp_path):
    chosen, rejected = cases.measure(cases.tiny_model(), cases.make_pairs())
    metrics = first_step(tmp_path, reference=(chosen * np.float32(1 + 5e-5), rejected))
    assert metrics["margin_mean"] == 0.0


@pytest.mark.parametrize("lora", [None, LoraOptions(r=2)])
def test_reference_of_other_weights_is_refused(tmp_path, lora):
    other = cases.measure(cases.tiny_model(7), cases.make_pairs())
    with pytest.raises(ModelError, match=r"does not belong to these weights: log p\(chosen\) of pair 'pair\d+'"):
        first_step(tmp_path, reference=other, lora=lora)


def test_swapped_reference_columns_are_refused(tmp_path):
    chosen, rejected = cases.measure(cases.tiny_model(), cases.make_pairs())
    with pytest.raises(ModelError, match="Measure the reference again"):
        first_step(tmp_path, reference=(rejected, chosen))


def test_reference_of_other_weights_passes_when_declared(tmp_path):
    other = cases.measure(cases.tiny_model(7), cases.make_pairs())
    assert first_step(tmp_path, reference=other, policy_is_reference=False)["margin_mean"] != 0.0


def test_active_dropout_is_refused(tmp_path):
    def load():
        return cases.tiny_model(attention_dropout=0.3)

    with pytest.raises(ModelError, match=r"every margin must be exactly 0; pair 'pair\d+' has .*dropout is active"):
        first_step(tmp_path / "kept", load_model=load, keep_dropout=True)
    assert first_step(tmp_path / "off", load_model=load)["margin_mean"] == 0.0


def test_saved_model_is_ordinary_and_keeps_its_configuration(tmp_path):
    result = train(cases.request(tmp_path, load_model=lambda: cases.tiny_model(attention_dropout=0.3)), cases.ignore)
    config = json.loads((result.model / "config.json").read_text())
    assert config["use_cache"] is True
    assert config["attention_dropout"] == 0.3
    assert AutoModelForCausalLM.from_pretrained(result.model).config.vocab_size == cases.VOCABULARY
    assert (result.model / "README.md").read_text() == "# Card\n"


def test_without_reference_there_is_nothing_to_check(tmp_path):
    metrics = first_step(tmp_path, algebra=cases.algebra(SimPO()))
    assert "chosen_log_ratio" not in metrics
    assert metrics["margin_mean"] != 0.0


def test_ipo_starts_at_its_known_loss(tmp_path):
    # (0 - 1 / (2 beta))^2
    assert first_step(tmp_path, algebra=cases.algebra(IPO(beta=0.5)))["loss"] == pytest.approx(1.0, abs=1e-6)


class Explodes(DPO):
    """Not finite for one pair after the first update."""

    def losses(self, margins):
        return super().losses(margins) / torch.where(margins == margins.max(), 0.0 * margins.detach(), 1.0)


def test_non_finite_loss_names_step_and_pairs(tmp_path):
    with pytest.raises(ModelError, match=r"not finite at optimiser step 1 for pairs 'pair\d+'"):
        first_step(tmp_path, algebra=cases.algebra(Explodes()))


def test_exploding_weights_name_step_and_pairs(tmp_path):
    with pytest.raises(ModelError, match=r"(Optimiser step \d+, pairs 'pair|optimiser step \d+)"):
        first_step(tmp_path, training={"optim": "sgd", "learning_rate": 1e30, "max_grad_norm": 1e9})


def test_frozen_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no trainable parameter"):
        first_step(tmp_path, load_model=lambda: cases.tiny_model().requires_grad_(False))


def test_a_run_that_moves_nothing_is_refused(tmp_path):
    with pytest.raises(ModelError, match="No parameter moved"):
        first_step(tmp_path, training={"max_steps": 1, "warmup_steps": 1})
    assert not (tmp_path / "model").exists()


def test_missing_and_unused_references_are_refused_before_loading(tmp_path):
    def load():
        raise AssertionError("loaded")

    pairs, reference = cases.make_pairs(), cases.measure(cases.tiny_model(), cases.make_pairs())
    with pytest.raises(ConfigError, match="objective DPO needs reference log-probs"):
        train(
            cases.request(tmp_path, pairs=pairs, load_model=load, reference=None, policy_is_reference=False),
            cases.ignore,
        )
    with pytest.raises(ConfigError, match="no component uses them"):
        train(
            cases.request(tmp_path, load_model=load, reference=reference, algebra=cases.algebra(SimPO())),
            cases.ignore,
        )


def test_trackers_get_every_metric(tmp_path, monkeypatch):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    metrics = first_step(tmp_path, training={"report_to": "tensorboard"})
    (folder,) = (tmp_path / "runs").iterdir()
    events = event_accumulator.EventAccumulator(str(folder)).Reload()
    assert {f"train/{name}" for name in metrics} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/margin_mean")] == [1, 2, 3, 4, 5, 6]


class Greedy(DPO):
    def losses(self, margins):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_running_out_of_memory_says_what_to_change(tmp_path):
    with pytest.raises(ModelError, match=r"Lower training\.per_device_train_batch_size"):
        first_step(tmp_path, algebra=cases.algebra(Greedy()))


def test_unwritable_folder_is_a_store_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Training could not write to"):
        first_step(tmp_path / "file" / "below")

"""Half-precision policies: float32 master weights, the exact start, and the dtype they are saved in."""

from __future__ import annotations

import gc
import json
import weakref

import pytest
import torch
import train_cases as cases
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file

from sera_core.errors import ConfigError, ModelError
from sera_core.meter import Meter
from sera_core.models import head
from sera_core.train.lora import LoraOptions, wrap_lora
from sera_core.train.run import train
from sera_core.train.trainer import PairTrainer

SMALL = {"learning_rate": 5e-6, "lr_scheduler_type": "constant", "weight_decay": 0.0}


def half(dtype=torch.bfloat16):
    return cases.tiny_model().to(dtype)


class StoppedError(Exception):
    pass


def stop_at(step):
    def on_step(record):
        if record.step == step:
            raise StoppedError

    return on_step


def test_a_small_step_reaches_the_master_weights(tmp_path):
    request = cases.request(tmp_path, load_model=half, training=SMALL, checkpoint_every=1)
    with pytest.raises(StoppedError):
        train(request, stop_at(2))
    before, masters = half().state_dict(), load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    assert {value.dtype for value in masters.values()} == {torch.float32}
    changed = sum(int((value != before[name].float()).sum()) for name, value in masters.items())
    rounded = sum(int((value.bfloat16() != before[name]).sum()) for name, value in masters.items())
    total = sum(value.numel() for value in masters.values())
    assert changed > 0.9 * total
    # What training in bfloat16 itself would have kept of it.
    assert rounded < 0.1 * total


@pytest.mark.parametrize("lora", [None, LoraOptions(r=2)])
@pytest.mark.parametrize("reweighter", [None, cases.Softmax()])
def test_start_is_exact_and_the_saved_dtype_is_the_policys(tmp_path, lora, reweighter):
    records = []
    request = cases.request(tmp_path, load_model=half, lora=lora, algebra=cases.algebra(reweighter=reweighter))
    result = train(request, records.append)
    assert records[0].metrics["margin_mean"] == records[0].metrics["chosen_log_ratio"] == 0.0
    assert records[0].metrics["loss"] == pytest.approx(0.6931471805599453, abs=1e-7)
    assert records[-1].metrics["loss"] < 0.69
    assert json.loads((result.model / "config.json").read_text())["dtype"] == "bfloat16"
    saved = load_file(result.model / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}
    assert saved.keys() == {name for name, _ in half().named_parameters()}


def test_forward_passes_run_in_half_precision_unless_told_otherwise(tmp_path, monkeypatch):
    seen = []
    logps = PairTrainer._logps

    def spy(trainer, model, inputs):
        head = trainer.policy.model.layers[0].mlp.register_forward_hook(lambda *a: seen.append(a[2].dtype))
        try:
            return logps(trainer, model, inputs)
        finally:
            head.remove()

    monkeypatch.setattr(PairTrainer, "_logps", spy)
    train(cases.request(tmp_path / "a", load_model=half), cases.ignore)
    assert set(seen) == {torch.bfloat16}
    seen.clear()
    train(cases.request(tmp_path / "b", load_model=half, training={"bf16": False}), cases.ignore)
    assert set(seen) == {torch.float32}


def test_a_resumed_run_continues_the_master_weights(tmp_path):
    common = {"load_model": half, "training": SMALL, "checkpoint_every": 1}
    whole = train(cases.request(tmp_path / "whole", **common), cases.ignore)
    with pytest.raises(StoppedError):
        train(cases.request(tmp_path / "cut", **common), stop_at(4))
    cut = train(cases.request(tmp_path / "cut", **common), cases.ignore)
    assert cut.resumed_from == 3
    assert (cut.model / "model.safetensors").read_bytes() == (whole.model / "model.safetensors").read_bytes()
    assert cut.steps_file.read_bytes() == whole.steps_file.read_bytes()


def test_updates_that_rounding_undoes_are_refused(tmp_path):
    training = SMALL | {"learning_rate": 1e-12, "max_steps": 1}
    with pytest.raises(ModelError, match="too small for policy.dtype"):
        train(cases.request(tmp_path, load_model=half, training=training), cases.ignore)


@pytest.mark.parametrize("lora", [None, LoraOptions(r=2)])
def test_float16_on_a_cpu_is_refused(tmp_path, lora):
    request = cases.request(tmp_path, load_model=lambda: half(torch.float16), lora=lora)
    with pytest.raises(ConfigError, match=r"policy\.dtype is float16, but there is no GPU.*Choose bfloat16"):
        train(request, cases.ignore)


def test_adapters_of_a_half_precision_policy_are_float32():
    model = wrap_lora(half(), LoraOptions(r=2))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


def watch(monkeypatch):
    """Weak references to everything large that a training makes."""
    alive = []
    create = PairTrainer.create_optimizer

    def created(trainer, *arguments):
        optimizer = create(trainer, *arguments)
        alive.extend(map(weakref.ref, (trainer, trainer.policy, optimizer, *trainer.policy.parameters())))
        return optimizer

    monkeypatch.setattr(PairTrainer, "create_optimizer", created)
    return alive


def assert_nothing_is_left(monkeypatch, request):
    alive = watch(monkeypatch)
    gc.collect()
    gc.disable()
    try:
        with monkeypatch.context() as patch:
            # Libraries collect on their own account, which would hide a cycle.
            patch.setattr(gc, "collect", lambda *_: 0)
            train(request, cases.ignore)
            assert len(alive) > 3
            assert not [reference() for reference in alive if reference() is not None]
    finally:
        gc.enable()


@pytest.mark.parametrize("load", [cases.tiny_model, half])
@pytest.mark.parametrize("lora", [None, LoraOptions(r=2)])
@pytest.mark.parametrize("training", [{}, {"bf16": True}])
def test_nothing_outlives_training(tmp_path, monkeypatch, load, lora, training):
    request = cases.request(tmp_path, load_model=load, lora=lora, training=training, progress=lambda *_: None)
    assert_nothing_is_left(monkeypatch, request)


def test_nothing_outlives_training_with_loss_scaling(tmp_path, monkeypatch):
    # What float16 does on a GPU: accelerate exchanges the step method of the optimiser.
    create = AcceleratedOptimizer.__init__

    def scaled(optimizer, inner, device_placement=True, scaler=None):
        create(optimizer, inner, device_placement, scaler or torch.amp.GradScaler("cpu", enabled=False))

    monkeypatch.setattr(AcceleratedOptimizer, "__init__", scaled)
    assert_nothing_is_left(monkeypatch, cases.request(tmp_path))


def test_a_failed_training_lets_go_of_the_optimizer(tmp_path, monkeypatch):
    alive = watch(monkeypatch)
    with pytest.raises(StoppedError):
        train(cases.request(tmp_path), stop_at(1))
    gc.collect()
    assert alive
    assert not [reference() for reference in alive if reference() is not None]


def test_progress_hears_of_every_step(tmp_path):
    told = []
    train(cases.request(tmp_path, progress=lambda *numbers: told.append(numbers)), cases.ignore)
    assert told == [(step, 6) for step in range(1, 7)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lora", [None, LoraOptions(r=2)])
def test_half_precision_on_a_gpu(tmp_path, monkeypatch, cuda, dtype, lora):
    alive, records = watch(monkeypatch), []
    request = cases.request(
        tmp_path,
        load_model=lambda: half(dtype).to(cuda),
        lora=lora,
        reference=cases.measure(half(torch.float32), cases.make_pairs()),
    )
    gc.collect()
    held = torch.cuda.memory_allocated()
    result = train(request, records.append)
    assert records[0].metrics["margin_mean"] == 0.0
    assert {value.dtype for value in load_file(result.model / "model.safetensors").values()} == {dtype}
    assert not [reference() for reference in alive if reference() is not None]
    # The workspaces of matrix libraries stay.
    assert torch.cuda.memory_allocated() <= held + 2**27


@pytest.mark.parametrize("lora", [None, LoraOptions(r=2)], ids=["full", "lora"])
@pytest.mark.parametrize("load", [cases.tiny_model, half], ids=["float32", "bfloat16"])
def test_activation_checkpointing_changes_nothing_but_memory(tmp_path, load, lora):
    ended = []
    for name, fields in (("kept", {}), ("computed", {"gradient_checkpointing": True})):
        records = []
        request = cases.request(tmp_path / name, load_model=load, lora=lora, training={"max_steps": 3, **fields})
        result = train(request, records.append)
        assert records[0].metrics["margin_mean"] == 0.0
        ended.append((records[-1].metrics["loss"], load_file(result.model / "model.safetensors")))
    assert ended[0][0] == pytest.approx(ended[1][0], abs=1e-5)
    for name, value in ended[0][1].items():
        torch.testing.assert_close(ended[1][1][name], value)


@pytest.mark.parametrize("lora", [None, LoraOptions(r=2, target_modules=("q_proj", "lm_head"))], ids=["full", "lora"])
def test_a_half_precision_policy_trains_in_packs(tmp_path, lora):
    meter = Meter()
    train(cases.request(tmp_path, load_model=half, lora=lora, meter=meter), cases.ignore)
    assert set(meter.forward_tokens) == {"packed_sdpa"}


def test_the_head_of_a_half_precision_policy_computes_in_half_precision(tmp_path, monkeypatch):
    seen, original = set(), head.linear
    monkeypatch.setattr(head, "linear", lambda states, *given: seen.add(states.dtype) or original(states, *given))
    train(cases.request(tmp_path, load_model=half), cases.ignore)
    assert torch.bfloat16 in seen

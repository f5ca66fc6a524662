"""What must not change a training run: how its batches are split, padded and ordered."""

from __future__ import annotations

import math

import pytest
import torch
import train_cases as cases
from safetensors.torch import load_file

from sera_core.builtin.ipo import IPO
from sera_core.builtin.orpo import ORPO
from sera_core.builtin.smoothers import Constant
from sera_core.models.logps import default_budget, group_logps
from sera_core.records import PairBatch, Pairs
from sera_core.train.batch import PairDataset, collate
from sera_core.train.lora import LoraOptions
from sera_core.train.order import EpochBatches
from sera_core.train.run import train
from sera_core.train.seeds import training_seed
from sera_core.train.step import pair_losses, reduce
from sera_core.train.trainer import PairTrainer


def trained(folder, **changes):
    records = []
    result = train(cases.request(folder, **changes), records.append)
    return records, load_file(result.model / "model.safetensors")


def assert_same_run(one, other, tolerance=1e-5):
    (records, weights), (records_2, weights_2) = one, other
    assert len(records) == len(records_2)
    for record, record_2 in zip(records, records_2, strict=True):
        assert record.metrics.keys() == record_2.metrics.keys()
        for name, value in record.metrics.items():
            assert value == pytest.approx(record_2.metrics[name], rel=1e-4, abs=1e-4), (record.step, name)
        assert record.metrics["loss"] == pytest.approx(record_2.metrics["loss"], rel=tolerance)
    for name, value in weights.items():
        torch.testing.assert_close(value, weights_2[name], rtol=tolerance, atol=tolerance)


ALGEBRAS = {
    "dpo": lambda: cases.algebra(),
    "orpo": lambda: cases.algebra(ORPO()),
    "ipo cdpo": lambda: cases.algebra(IPO(), Constant(0.2)),
    "whole batch": lambda: cases.algebra(reweighter=cases.Softmax()),
    "told": lambda: cases.algebra(smoother=Constant(0.2), reweighter=cases.Telling()),
    "dataset": lambda: cases.algebra(reweighter=cases.Telling(every=0.6)),
    "dataset stateful": lambda: cases.algebra(smoother=cases.MovingThreshold(), reweighter=cases.Telling(every=1.0)),
    "stateful": lambda: cases.algebra(smoother=cases.MovingThreshold()),
}


@pytest.mark.parametrize("name", ALGEBRAS)
def test_accumulation_does_not_change_the_run(tmp_path, name):
    # 20 pairs: the last effective batch of each epoch is incomplete. SGD keeps rounding from being blown up.
    common = {"optim": "sgd", "learning_rate": 0.05}
    split = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    uneven = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 8}

    def run(folder, **fields):
        pairs = cases.make_pairs(20, flipped=(True, False, None))
        return trained(tmp_path / folder, training=common | fields, algebra=ALGEBRAS[name](), pairs=pairs)

    assert_same_run(run("8x1"), run("1x8", **split))
    if name not in ("dpo", "told", "dataset"):
        return
    # 3 x 8 over 20 pairs in one step: micro-batches of 3 and one of 2 weigh by their pairs.
    assert_same_run(run("24", per_device_train_batch_size=24), run("3x8", **uneven))


def test_accumulation_does_not_change_an_adamw_run(tmp_path):
    # Adam divides by the size of a gradient: where that is rounding noise, only epsilon keeps runs comparable.
    common = {"learning_rate": 1e-3, "adam_epsilon": 1e-4}
    split = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    assert_same_run(trained(tmp_path / "8x1", training=common), trained(tmp_path / "1x8", training=common | split))


def test_whole_batch_weights_are_not_those_of_micro_batches(tmp_path):
    split = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    records, _ = trained(tmp_path / "a", training=split, algebra=ALGEBRAS["whole batch"]())
    # Weighing each micro-batch of one by itself would give weight 1 throughout.
    assert records[-1].metrics["weight_max"] > 1.01
    assert records[-1].metrics["effective_sample_size"] < 4


def test_same_seed_same_bytes_other_seed_other_order(tmp_path):
    runs = [train(cases.request(tmp_path / str(i), seed=seed), cases.ignore) for i, seed in enumerate((3, 3, 4))]
    files = [(r.model / "model.safetensors").read_bytes() for r in runs]
    steps = [r.steps_file.read_bytes() for r in runs]
    assert files[0] == files[1]
    assert steps[0] == steps[1]
    assert files[0] != files[2]


def drawn(monkeypatch, folder, **changes):
    """The pairs of the first micro-batch, and where the adapter starts if there is one."""
    seen = []

    class SeenError(Exception):
        pass

    def spy(trainer, model, inputs, *_, **__):
        seen.append(inputs.ids)
        seen.append([p.detach().clone() for name, p in model.named_parameters() if "lora_A" in name])
        raise SeenError

    monkeypatch.setattr(PairTrainer, "compute_loss", spy)
    with pytest.raises(SeenError):
        train(cases.request(folder, **changes), cases.ignore)
    return seen


def test_every_iteration_has_its_own_order_and_adapter(tmp_path, monkeypatch):
    lora = LoraOptions(r=2)

    def first(**changes):
        return drawn(monkeypatch, tmp_path / str(len(list(tmp_path.iterdir()))), lora=lora, **changes)

    (ids, start), (ids_again, start_again), (ids_2, start_2) = (first(iteration=i) for i in (1, 1, 2))
    assert ids == ids_again
    assert ids != ids_2
    assert all(torch.equal(a, b) for a, b in zip(start, start_again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(start, start_2, strict=True))
    # A data seed rules the order alone, and differs between iterations too.
    fields = {"data_seed": 9}
    (mixed, mixed_start), (same, _), (other, _) = (
        first(training=fields),
        first(training=fields, seed=4),
        first(training=fields, iteration=2),
    )
    assert mixed == same
    assert len({ids, mixed, other}) == 3
    assert all(torch.equal(a, b) for a, b in zip(start, mixed_start, strict=True))


def test_loading_that_draws_random_numbers_does_not_move_the_adapter(tmp_path, monkeypatch):
    def load():
        torch.rand(3)
        return cases.tiny_model()

    starts = [drawn(monkeypatch, tmp_path / str(i), lora=LoraOptions(r=2), load_model=load)[1] for i in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*starts, strict=True))


def test_neutral_fields_leave_the_bytes_alone(tmp_path):
    common = {"policy_is_reference": False, "keep_dropout": True}

    def bytes_of(name, **fields):
        request = cases.request(
            tmp_path / name, load_model=lambda: cases.tiny_model(attention_dropout=0.3), training=fields, **common
        )
        result = train(request, cases.ignore)
        return (result.model / "model.safetensors").read_bytes(), result.steps_file.read_bytes()

    shown = {"run_name": "x", "project": "y", "torch_empty_cache_steps": 1}
    loaded = {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 3, "dataloader_persistent_workers": True}
    assert bytes_of("plain") == bytes_of("other", **shown, **loaded)


def test_the_token_budget_reaches_every_forward_pass(tmp_path, monkeypatch):
    budgets = []

    def spy(*arguments, token_budget):
        budgets.append(token_budget)
        return group_logps(*arguments, token_budget=token_budget)

    monkeypatch.setattr("sera_core.train.measuring.group_logps", spy)
    common = {"optim": "sgd", "learning_rate": 0.05}
    small = trained(tmp_path / "small", token_budget=20, training=common, algebra=ALGEBRAS["whole batch"]())
    assert set(budgets) == {20}
    budgets.clear()
    assert_same_run(small, trained(tmp_path / "default", training=common, algebra=ALGEBRAS["whole batch"]()))
    assert set(budgets) == {default_budget(torch.device("cpu"))}


def test_the_trainer_is_a_plain_torch_loop(tmp_path):
    pairs = cases.make_pairs(20)
    training = {
        "max_steps": 5,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.01,
        "optim": "adamw_torch",
        "adam_epsilon": 1e-4,
        "max_grad_norm": 0.0,
    }
    records, weights = trained(tmp_path, pairs=pairs, training=training)
    model = cases.tiny_model().train()
    chosen, rejected = cases.measure(model, pairs)
    decay = [p for name, p in model.named_parameters() if "norm" not in name]
    rest = [p for name, p in model.named_parameters() if "norm" in name]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}], lr=1e-3, eps=1e-4
    )
    order = EpochBatches([1] * 20, 8, training_seed(3, 1))
    steps = []
    for epoch in range(2):
        order.epoch = epoch
        steps += [[draw.pair for draw in batch] for batch in order]
    for record, step in zip(records, steps, strict=False):
        margins = torch.stack([plain_margin(model, pairs.pairs[i], chosen[i], rejected[i]) for i in step])
        loss = -torch.nn.functional.logsigmoid(0.1 * margins).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert record.metrics["loss"] == pytest.approx(loss.item(), abs=1e-5)
        assert record.metrics["margin_mean"] == pytest.approx(margins.mean().item(), abs=1e-4)
    assert len(records) == 5
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(weights[name], parameter.detach(), rtol=1e-5, atol=1e-5)


def plain_margin(model, pair, chosen_reference, rejected_reference):
    """One unpadded forward per response, every logit kept."""
    ratios = []
    for response, reference in ((pair.chosen, chosen_reference), (pair.rejected, rejected_reference)):
        ids = torch.tensor([*pair.prompt.ids, *response.ids])[None]
        logps = model(input_ids=ids).logits[0].log_softmax(-1)
        first = len(pair.prompt.ids)
        ratios.append(sum(logps[t - 1, ids[0, t]] for t in range(first, ids.shape[1])) - float(reference))
    return ratios[0] - ratios[1]


def gradient(model, inputs, total):
    logps = group_logps(model, inputs.plain.groups)
    result = pair_losses(cases.algebra(), PairBatch(inputs.plain.logps(logps.sums), 0.0, 0))
    model.zero_grad()
    loss = reduce(result, torch.ones(len(inputs.ids)), total)
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters()])


def batch_of(pairs, reference, indices):
    dataset = PairDataset(
        Pairs(tuple(pairs.pairs[i] for i in indices)), tuple(side[list(indices)] for side in reference)
    )
    return collate([dataset[draw] for draw in sorted(next(iter(EpochBatches([1] * len(indices), 99, 0))))])


def test_batch_order_and_padding_change_neither_loss_nor_gradient():
    model, pairs = cases.tiny_model(), cases.make_pairs(6)
    reference = cases.measure(cases.tiny_model(1), pairs)
    loss, grad = gradient(model, batch_of(pairs, reference, [0, 1, 2, 3, 4, 5]), 6)
    shuffled = gradient(model, batch_of(pairs, reference, [4, 2, 5, 0, 3, 1]), 6)
    assert shuffled[0] == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(shuffled[1], grad, rtol=1e-5, atol=1e-5)
    # Alone, no pair is padded to the length of another.
    parts = [gradient(model, batch_of(pairs, reference, [i]), 6) for i in range(6)]
    assert sum(part[0] for part in parts) == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(sum(part[1] for part in parts), grad, rtol=1e-5, atol=1e-5)


def test_lora_trains_the_adapter_and_saves_a_plain_model(tmp_path):
    records, weights = trained(tmp_path, lora=LoraOptions(r=4))
    before = cases.tiny_model().state_dict()
    assert records[0].metrics["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert records[-1].metrics["loss"] < 0.6
    assert not any("lora" in name for name in weights)
    assert torch.equal(weights["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert not torch.equal(
        weights["model.layers.0.self_attn.q_proj.weight"], before["model.layers.0.self_attn.q_proj.weight"]
    )

"""Order, collation, arguments, adapters and checkpoints of the training room, each by itself."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from sera_core.errors import ConfigError, DataError, ModelError, StoreError
from sera_core.protocols import Needs
from sera_core.records import Pair, Pairs, Prompt, Response, StepRecord, TextPrompt
from sera_core.train.arguments import (
    NEUTRAL,
    OWNED,
    build_arguments,
    check_training_fields,
    normal_training_fields,
)
from sera_core.train.batch import PairDataset, collate
from sera_core.train.checkpoint import (
    Checkpoint,
    StepFile,
    delete_checkpoints,
    last_complete,
    restore_components,
)
from sera_core.train.checks import check_reference, disable_dropout
from sera_core.train.lora import LoraOptions, adapter_off, merge, wrap_lora
from sera_core.train.needs import check_needs
from sera_core.train.order import Draw, EpochBatches, balanced
from sera_core.train.precision import cast_back, cast_to_master, check_precision, set_precision
from sera_core.train.seeds import training_seed
from sera_core.train.step import Algebra

NOTHING = Needs()


def pair(name, flipped=None):
    prompt = Prompt(name, np.array([1, 2], np.int32), TextPrompt(name, "text"))
    sides = (Response(prompt, np.array(ids, np.int32), "", "given", "offline") for ids in ([3, 4], [5]))
    return Pair(name, *sides, "source", "template", flipped=flipped)


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_a_step_holds_the_same_pairs_however_it_is_shared_out(pairs, size, world, steps, epoch):
    costs = np.random.default_rng(pairs).integers(1, 500, pairs).tolist()

    def order(*shape):
        batches = EpochBatches(costs, *shape)
        batches.epoch = epoch
        found = list(batches)
        assert len(found) == len(batches)
        assert all(len(batch) in range(1, shape[0] + 1) for batch in found)
        return found

    ranks = [order(size, 5, rank, world, steps) for rank in range(world)]
    drawn = []
    for first in range(0, len(ranks[0]), steps):
        step = [draw for rank in ranks for batch in rank[first : first + steps] for draw in batch if draw.counted]
        assert sorted(draw.place for draw in step) == list(range(len(step)))
        drawn += [draw.pair for draw in sorted(step, key=lambda draw: draw.place)]
    assert drawn == [draw.pair for batch in order(size * world * steps, 5) for draw in batch]
    assert sorted(drawn) == list(range(pairs))


def test_ranks_and_micro_batches_get_about_equally_many_tokens():
    costs = np.random.default_rng(0).lognormal(5.3, 0.6, 400).astype(int)
    tokens = np.zeros((2, 25, 2))
    for rank in range(2):
        for number, batch in enumerate(EpochBatches(costs.tolist(), 4, 1, rank, 2, 2)):
            tokens[rank, number // 2, number % 2] = sum(costs[draw.pair] for draw in batch)
    of_ranks = tokens.sum(2)
    assert (of_ranks.max(0) / of_ranks.min(0)).max() < 1.02
    assert of_ranks.sum(1).max() / of_ranks.sum(1).min() < 1.001
    assert np.median(tokens.max(2) / tokens.min(2)) < 1.1
    shuffled = costs[np.random.default_rng(1).permutation(400)].reshape(25, 2, 8).sum(2)
    assert (shuffled.max(1) / shuffled.min(1)).max() > 1.3, "balancing must have something to do"


def test_single_pairs_a_rank_even_out_over_an_epoch():
    costs = np.random.default_rng(0).lognormal(5.3, 0.6, 400).astype(int)
    ranks = [[costs[draw.pair] for (draw,) in EpochBatches(costs.tolist(), 1, 1, rank, 2)] for rank in range(2)]
    first, second = np.array(ranks)
    assert (np.maximum(first, second) / np.minimum(first, second)).mean() > 1.5, "pairs must differ"
    assert max(first.sum(), second.sum()) / min(first.sum(), second.sum()) < 1.03


def test_balanced_shares_by_hand():
    assert balanced([9, 1, 8, 2], [2, 2]) == [[0, 1], [2, 3]]
    assert balanced([5, 5, 5], [2, 1]) == [[0, 2], [1]]
    assert balanced([], [0, 0]) == [[], []]
    # The costliest-first rule ends at 10 and 12 here; a swap mends it.
    assert sorted(sum([7, 6, 4, 3, 1, 1][i] for i in share) for share in balanced([7, 6, 4, 3, 1, 1], [3, 3])) == [
        11,
        11,
    ]


def test_order_changes_with_epoch_and_seed():
    def order(seed, epoch):
        batches = EpochBatches([1] * 50, 8, seed)
        batches.epoch = epoch
        return [draw.pair for batch in batches for draw in batch]

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_collation_keeps_ids_references_and_flips():
    reference = (np.array([-1.5, -2.5], np.float32), np.array([-3.5, -4.5], np.float32))
    dataset = PairDataset(Pairs((pair("a", flipped=True), pair("b"))), reference)
    batch = collate([dataset[Draw(1, True)], dataset[Draw(0, True)]])
    assert batch.ids == ("b", "a")
    assert batch.plain.chosen_reference.tolist() == [-2.5, -1.5]
    assert batch.plain.rejected_reference.dtype == torch.float32
    assert batch.plain.groups[0].responses[1].tolist() == [5]
    assert batch.indices.tolist() == [1, 0]
    assert batch.flipped[1].item() == 1
    assert bool(batch.flipped[0].isnan())
    assert batch.pairs == 2
    logps = batch.plain.logps(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert logps.chosen_policy.tolist() == [1, 3]
    assert logps.rejected_length.tolist() == [1, 1]
    filler = collate([dataset[Draw(0, False)]])
    assert filler.pairs == 0
    assert collate([PairDataset(Pairs((pair("a"),)), None)[Draw(0, True)]]).plain.chosen_reference is None


@pytest.mark.parametrize(
    ("pairs", "reference", "message"),
    [
        (Pairs((), {"tie": 3}), None, r"no pair to train on \(dropped before: 3 tie\)"),
        (Pairs((pair("a"), pair("a"))), None, "Two training pairs have the id 'a'"),
        (Pairs((pair("a"),)), (np.zeros(2), np.zeros(1)), r"chosen responses have shape \(2,\), expected \(1,\)"),
        (Pairs((pair("a"),)), (np.zeros(1), np.array([np.nan])), "rejected response of pair 'a' is nan"),
    ],
)
def test_unusable_data_is_refused(pairs, reference, message):
    with pytest.raises(DataError, match=message):
        PairDataset(pairs, reference)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rte": 1}, "training.learning_rte is unknown. Did you mean 'learning_rate'"),
        ({"learning_rate": 0}, "learning_rate is 0.*nothing would be trained"),
        ({"learning_rate": "fast"}, "learning_rate must be a number, got 'fast'"),
        ({"learning_rate": True}, "learning_rate must be a number, got True"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number, got nan"),
        ({"num_train_epochs": float("inf")}, "num_train_epochs must be a finite number, got inf"),
        ({"num_train_epochs": "nan"}, "num_train_epochs must be a finite number, got nan"),
        ({"max_steps": float("inf")}, "max_steps must be a finite number, got inf"),
        ({"num_train_epochs": 2, "max_steps": 7}, r"max_steps is 7, so training.num_train_epochs \(2\) would be"),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": False}}, "no effect without training.gradient_check"),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "use_reentrant: true, which gives an adapter no gradient",
        ),
        ({"dataloader_prefetch_factor": 2}, "prefetch_factor has no effect without training.dataloader_num_workers"),
        ({"dataloader_persistent_workers": True}, "persistent_workers has no effect without"),
        ({"data_seed": "abc"}, "data_seed must be a number, got 'abc'"),
        ({"data_seed": 1.5}, "data_seed must be a whole number"),
        ({"tf32": "yes"}, "tf32 must be true or false"),
        ({"use_cpu": True}, "scoring and generation would still use the GPU.*CUDA_VISIBLE_DEVICES="),
        ({"ddp_timeout": 5}, "Sera connects the processes itself"),
        ({"bf16": "yes"}, "bf16 must be true or false, got 'yes'"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be at least 1"),
        ({"gradient_accumulation_steps": 1.5}, "must be a whole number, got 1.5"),
        ({"num_train_epochs": 0}, "take no step"),
        ({"max_steps": 0}, "take no step"),
        *(({name: 1}, f"training.{name} cannot be set: ") for name in sorted(OWNED)),
    ],
)
def test_training_fields_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        check_training_fields(fields)


def test_numbers_written_as_text_are_read():
    checked = check_training_fields({"learning_rate": "1e-5", "max_steps": "7", "warmup_steps": 0.1})
    assert checked == {"learning_rate": 1e-5, "max_steps": 7, "warmup_steps": 0.1}
    assert type(check_training_fields({"data_seed": "7"})["data_seed"]) is int


def test_null_takes_back_what_a_preset_sets():
    assert check_training_fields({"num_train_epochs": None, "max_steps": 5}) == {"max_steps": 5}


def test_normal_fields_have_one_spelling_and_only_what_decides_the_result():
    written = {"warmup_steps": 1, "learning_rate": "1e-5", "max_steps": "7", "optim": "sgd", "bf16": None}
    shown = {"report_to": "none", "run_name": "a", "project": "b", "disable_tqdm": False, "dataloader_num_workers": 2}
    normal = normal_training_fields(written | shown)
    assert json.dumps(normal) == '{"learning_rate": 1e-05, "max_steps": 7, "optim": "sgd", "warmup_steps": 1.0}'
    assert json.dumps(normal_training_fields({"weight_decay": 1})) == json.dumps(
        normal_training_fields({"weight_decay": "1.0"})
    )
    with pytest.raises(ConfigError, match="training.sed is unknown"):
        normal_training_fields({"sed": 1})


def test_every_field_is_owned_neutral_or_in_the_key():
    names = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    assert names >= NEUTRAL
    assert not NEUTRAL & OWNED.keys()


def test_every_owned_field_has_a_reason_of_its_own_or_exists_no_more():
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert OWNED.keys() - known <= {"group_by_length"}
    assert all(reason and not reason.endswith(".") for reason in OWNED.values())


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_inherited_precision_does_not_count(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert build_arguments({}, output_dir=tmp_path, seed=0).mixed_precision == "no"
    assert build_arguments({"bf16": True}, output_dir=tmp_path, seed=0).mixed_precision == "bf16"


@pytest.mark.usefixtures("no_gpu")
def test_float16_needs_a_gpu(tmp_path):
    with pytest.raises(ConfigError, match="training.fp16 is true, but there is no GPU"):
        build_arguments({"fp16": True}, output_dir=tmp_path, seed=0)
    with pytest.raises(ConfigError, match="policy.dtype is float16, but there is no GPU"):
        check_precision("float16", {"bf16": None})
    check_precision("float16", {"bf16": True})
    check_precision("bfloat16", {})


@pytest.mark.parametrize(
    ("dtype", "fields", "adapter", "expected"),
    [
        (torch.float32, {}, False, "no"),
        (torch.bfloat16, {}, False, "bf16"),
        (torch.bfloat16, {}, True, "no"),
        (torch.bfloat16, {"bf16": False}, False, "no"),
        (torch.float16, {}, False, "fp16"),
        (torch.float16, {}, True, "fp16"),
        (torch.float16, {"bf16": False}, False, "no"),
    ],
)
def test_forward_passes_take_the_precision_of_the_policy(tmp_path, monkeypatch, dtype, fields, adapter, expected):
    monkeypatch.setattr("sera_core.train.precision.accelerated", lambda: True)
    arguments = build_arguments(fields, output_dir=tmp_path, seed=0)
    set_precision(arguments, dtype, fields, adapter)
    assert arguments.mixed_precision == expected
    assert (arguments.bf16, arguments.fp16) == (expected == "bf16", expected == "fp16")


def test_master_weights_go_there_and_back():
    model = tiny(tie_word_embeddings=True).bfloat16()
    model.model.norm.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dtypes = cast_to_master(model)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model.model.norm.weight.dtype is torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 1 + 2**-8 + 2**-12
    cast_back(model, dtypes)
    # To the nearest: 1 + 2^-7, not 1.
    assert model.lm_head.weight[0, 0].item() == 1 + 2**-7
    assert all(
        torch.equal(value.flatten()[1:], before[name].flatten()[1:]) for name, value in model.state_dict().items()
    )


def test_training_seeds():
    seeds = {training_seed(seed, iteration) for seed in range(40) for iteration in range(40)}
    assert len(seeds) == 1600
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert training_seed(3, 1) == training_seed(3, 1)
    assert training_seed(1, 11) != training_seed(11, 1)
    assert training_seed(2**70, 0) != training_seed(2**71, 0)


@pytest.mark.usefixtures("no_gpu")
def test_arguments_are_built(tmp_path):
    given = {"learning_rate": 2e-4, "lr_scheduler_type": "cosine"}
    arguments = build_arguments(given, output_dir=tmp_path / "out", seed=2**40 + 5)
    assert (arguments.learning_rate, arguments.seed, arguments.report_to) == (2e-4, 5, [])
    assert (arguments.save_strategy, arguments.logging_steps, arguments.n_gpu) == ("no", 1, 0)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"training.lr_scheduler_type has no value 'cosin'. Did you mean 'cosine'"):
        build_arguments({"lr_scheduler_type": "cosin"}, output_dir=tmp_path, seed=0)


@pytest.fixture(scope="module")
def ids():
    return torch.tensor([[1, 2, 3, 4, 5]])


def tiny(**changes):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=9, num_key_value_heads=2, **shape, **changes)).eval()


def test_adapter_starts_neutral_switches_off_and_merges(ids):
    plain = tiny()(ids).logits
    model = wrap_lora(tiny(), LoraOptions(r=2, alpha=4, target_modules=("q_proj", "down_proj")))
    assert torch.equal(model(ids).logits, plain)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    changed = model(ids).logits
    assert not torch.allclose(changed, plain)
    with adapter_off(model):
        assert torch.equal(model(ids).logits, plain)
    merged = merge(model)
    assert type(merged) is LlamaForCausalLM
    torch.testing.assert_close(merged(ids).logits, changed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (LoraOptions(target_modules=("q_prj",)), "no linear layer called 'q_prj'.*Did you mean 'q_proj'"),
        (LoraOptions(target_modules=("q_proj", "norm")), "no linear layer called 'norm'"),
        (LoraOptions(r=0), "r >= 1.*r=0"),
        (LoraOptions(dropout=1.0), "dropout=1.0"),
    ],
)
def test_bad_adapters_are_refused(options, message):
    with pytest.raises(ModelError, match=message):
        wrap_lora(tiny(), options)


def test_missing_peft_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ModelError, match=r"pip install 'sera-core\[peft\]'"):
        wrap_lora(tiny(), LoraOptions())


def test_disable_dropout_reaches_layers_and_attention():
    model = tiny(attention_dropout=0.5)
    model.extra = torch.nn.Dropout(0.4)
    disable_dropout(model)
    assert model.extra.p == 0
    assert model.model.layers[0].self_attn.attention_dropout == 0
    assert model.config.attention_dropout == 0.5


@pytest.mark.parametrize(
    ("dtype", "off", "passes"),
    [
        (torch.float32, 0.010, True),
        (torch.float32, 0.012, False),
        (torch.bfloat16, 2.0, True),
        (torch.bfloat16, 2.5, False),
    ],
)
def test_reference_tolerance(dtype, off, passes):
    stored, live, lengths = torch.tensor([-100.0 - off]), torch.tensor([-100.0]), torch.tensor([10])
    if passes:
        check_reference("chosen", stored, live, lengths, ["a"], dtype)
    else:
        with pytest.raises(ModelError, match=r"log p\(chosen\) of pair 'a' is stored as -10"):
            check_reference("chosen", stored, live, lengths, ["a"], dtype)


def test_step_file_is_cut_where_the_checkpoint_was(tmp_path):
    with StepFile(tmp_path / "steps", 0) as steps:
        steps.write(StepRecord(2, 1, {"loss": 0.5}))
        length = steps.length()
        steps.write(StepRecord(2, 2, {"loss": 0.25}))
    with StepFile(tmp_path / "steps", length) as steps:
        assert steps.length() == length
        steps.write(StepRecord(2, 2, {"loss": 0.125}))
    lines = [json.loads(line) for line in (tmp_path / "steps").read_text().splitlines()]
    assert lines == [{"iteration": 2, "step": 1, "loss": 0.5}, {"iteration": 2, "step": 2, "loss": 0.125}]


def test_step_file_shorter_than_its_checkpoint_is_refused(tmp_path):
    with pytest.raises(StoreError, match="shorter than its checkpoint says"):
        StepFile(tmp_path / "steps", 1)


def test_only_complete_checkpoints_count(tmp_path):
    for step, complete in ((9, True), (10, True), (12, False)):
        path = tmp_path / f"checkpoint-{step}"
        path.mkdir()
        if complete:
            (path / "complete.json").write_text(json.dumps({"step": step, "steps_bytes": step * 100}))
    assert last_complete(tmp_path) == Checkpoint(tmp_path / "checkpoint-10", 10, 1000)
    delete_checkpoints(tmp_path, complete=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]
    assert last_complete(tmp_path / "absent") is None
    (tmp_path / "checkpoint-9" / "complete.json").write_text("{")
    with pytest.raises(StoreError, match="Cannot read the checkpoint marker"):
        last_complete(tmp_path)


def test_component_states_must_fit(tmp_path):
    (tmp_path / "components.json").write_text('{"smoother": {}}')
    with pytest.raises(StoreError, match=r"states for \['smoother'\], the run has stateful components \[\]"):
        restore_components(Checkpoint(tmp_path, 1, 0), {})


@dataclasses.dataclass(frozen=True)
class Part:
    needs: Needs = NOTHING


@pytest.mark.parametrize(
    ("parts", "has_reference", "message"),
    [
        ((Part(), (), Part(Needs(prefixes=("p",))), Part()), False, "smoother Part asks for margins under prompt"),
        ((Part(), (), Part(), Part(Needs(extrapolation=0.5))), False, "reweighter Part asks for an extrapolated"),
        ((Part(), (), Part(Needs(extrapolation=-0.5)), Part()), False, "the extrapolation -0.5, which must"),
        ((Part(), (), Part(Needs(extrapolation=0.5)), Part()), False, "from a reference, and the objective has none"),
        ((Part(Needs(reference=True)), (), Part(), Part()), False, "objective Part needs reference"),
        ((Part(), (), Part(), Part()), True, "no component uses them"),
        (
            (Part(Needs(dataset_every=1.0)), (), Part(), Part()),
            False,
            "objective Part asks for.*every 1 epochs. Only a",
        ),
        ((Part(), (), Part(), Part(Needs(dataset_every=-0.5))), False, "reweighter Part asks for.*every -0.5 epochs"),
        ((Part(), (), Part(), Part(Needs(dataset_every=float("inf")))), False, "finite number above 0"),
    ],
)
def test_needs_that_cannot_be_met_are_refused(parts, has_reference, message):
    with pytest.raises(ConfigError, match=message):
        check_needs(Algebra(*parts), has_reference)

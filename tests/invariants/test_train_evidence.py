"""The table of training pairs as training saw them last."""

import dataclasses
import json

import pytest
import torch
import train_cases as cases

from sera_core.builtin.smoothers import Constant
from sera_core.evidence import read_evidence
from sera_core.train.last_seen import LastSeen
from sera_core.train.run import train

SGD = {"optim": "sgd", "learning_rate": 0.05}


def trained(folder, **changes):
    changes["training"] = SGD | changes.get("training", {})
    result = train(cases.request(folder, **changes), cases.ignore)
    records = [json.loads(line) for line in result.steps_file.read_text().splitlines()]
    return read_evidence(folder / "pairs.arrow").to_pylist(), records


def test_the_rows_of_an_epoch_average_to_its_steps(tmp_path):
    pairs = cases.make_pairs(20, flipped=(True, False, None))
    algebra = cases.algebra(smoother=Constant(0.2), reweighter=cases.Softmax())
    rows, records = trained(tmp_path, pairs=pairs, algebra=algebra)
    assert [row["pair"] for row in rows] == [pair.id for pair in pairs.pairs]
    assert [row["flipped"] for row in rows] == [pair.flipped for pair in pairs.pairs]
    assert {row["origin"] for row in rows} == {"offline"}
    last = records[3:]
    assert sum(step["pairs"] for step in last) == 20
    for name, metric in {"margin": "margin_mean", "confidence": "confidence_mean", "weight": "weight_mean"}.items():
        mean = sum(step["pairs"] * step[metric] for step in last) / 20
        assert sum(row[name] for row in rows) / 20 == pytest.approx(mean, rel=1e-5)
        assert len({row[name] for row in rows}) > 10
    assert [row["flip"] for row in rows] == pytest.approx([0.2] * 20)
    logistic = torch.sigmoid(algebra.objective.beta * torch.tensor([row["margin"] for row in rows]))
    assert [row["confidence"] for row in rows] == pytest.approx(logistic.tolist(), abs=1e-6)


def test_plain_training_weighs_every_pair_one(tmp_path):
    rows, _ = trained(tmp_path)
    assert {(row["weight"], row["flip"], row["flipped"]) for row in rows} == {(1.0, 0.0, None)}


def test_accumulation_changes_no_row(tmp_path):
    algebra = {"algebra": cases.algebra(reweighter=cases.Softmax())}
    whole, _ = trained(tmp_path / "one", **algebra)
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    parts, _ = trained(tmp_path / "four", training=split, **algebra)
    assert [row["pair"] for row in whole] == [row["pair"] for row in parts]
    for name in ("margin", "confidence", "weight", "flip"):
        assert [row[name] for row in whole] == pytest.approx([row[name] for row in parts], rel=1e-4, abs=1e-5)


def test_pairs_that_training_never_saw_have_nulls(tmp_path):
    rows, records = trained(tmp_path, training={"max_steps": 1})
    assert records[0]["pairs"] == 8
    unseen = [row for row in rows if row["margin"] is None]
    assert len(unseen) == 12
    assert {(row["confidence"], row["weight"], row["flip"]) for row in unseen} == {(None, None, None)}
    assert all(row["margin"] == 0 for row in rows if row not in unseen), "the first step starts at the reference"


def test_generated_pairs_are_named(tmp_path):
    pairs = cases.make_pairs(8)
    own = tuple(dataclasses.replace(pair, source="generated") for pair in pairs.pairs[:3])
    rows, _ = trained(tmp_path, pairs=dataclasses.replace(pairs, pairs=own + pairs.pairs[3:]))
    assert [row["origin"] for row in rows] == ["generated"] * 3 + ["offline"] * 5


def test_the_newest_measurement_wins_and_survives_json():
    seen = LastSeen(3)
    seen.put(torch.tensor([[2.0, 0.1, 0.5, 1.0, 0.0], [0.0, -1.0, 0.4, 2.0, 0.3]], dtype=torch.float64))
    seen.put(torch.tensor([[2.0, 0.7, 0.6, 1.0, 0.0]], dtype=torch.float64))
    again = LastSeen(3)
    again.load_state_dict(json.loads(json.dumps(seen.state_dict())))
    columns = again.columns(cases.make_pairs(3).pairs)
    assert str(columns["margin"].tolist()) == "[-1.0, nan, 0.7]"
    assert str(columns["weight"].tolist()) == "[2.0, nan, 1.0]"

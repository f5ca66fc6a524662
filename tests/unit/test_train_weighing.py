"""What a reweighter answers is checked and made plain; weights of a whole training set are kept."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from sera_core.errors import ModelError, StoreError
from sera_core.protocols import Needs, Stateful, Weighing
from sera_core.records import BatchStats, Weighted
from sera_core.train.dataset_values import DatasetValues
from sera_core.train.told import plain_metrics
from sera_core.train.weighing import weigh, weighs_dataset, weighs_whole_batch

NOTHING = Needs()


@dataclasses.dataclass(frozen=True)
class Given:
    """Answers what it was given."""

    answer: object
    needs: Needs = NOTHING

    def weights(self, stats):
        return self.answer


class Told(Given):
    def weigh(self, stats):
        return self.answer

    def weights(self, stats):
        raise AssertionError("weigh is asked where it is there")


def stats(count=2):
    values = torch.linspace(0.1, 0.9, count)
    return BatchStats(values, values, values, torch.full((count,), torch.nan), 0.5)


def test_weights_come_in_the_losses_dtype_without_gradient():
    weighed = weigh(Given(torch.tensor([0.5, 1.5], dtype=torch.float64, requires_grad=True)), stats())
    assert weighed.weights.dtype == torch.float32
    assert not weighed.weights.requires_grad
    assert (weighed.weights.tolist(), weighed.metrics) == ([0.5, 1.5], {})


def test_metrics_become_floats_in_order():
    given = {
        "radius": 0.25,
        "moved": torch.tensor(0.5),
        "count": 3,
        "price": torch.tensor(2.0, dtype=torch.float64, requires_grad=True),
        "groups": torch.tensor(7),
    }
    weighed = weigh(Told(Weighted(torch.ones(2), given)), stats())
    assert list(weighed.metrics.items()) == [
        ("radius", 0.25),
        ("moved", 0.5),
        ("count", 3.0),
        ("price", 2.0),
        ("groups", 7.0),
    ]
    assert all(type(value) is float for value in weighed.metrics.values())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(3), r"Given gave weights of shape \(3,\) for 2 pairs"),
        (torch.ones(()), r"shape \(\) for 2 pairs"),
        (torch.tensor([1.0, float("nan")]), r"Given gave a pair the weight nan \(1 of 2 pairs\)"),
        (torch.tensor([-0.5, float("inf")]), r"the weight -0.5 \(2 of 2 pairs\)"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(weights, message):
    with pytest.raises(ModelError, match=message):
        weigh(Given(weights), stats())


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"loss": 1.0}, "Given reports the metric 'loss', which the step record has itself. Rename it"),
        ({"step": 1.0}, "Given reports the metric 'step'"),
        ({"flip_clean": 1.0}, "Given reports the metric 'flip_clean'"),
        ({"reweighted_at": 1.0}, "Given reports the metric 'reweighted_at'"),
        ({"": 1.0}, "Given reports a metric named ''"),
        ({3: 1.0}, "Given reports a metric named 3"),
        ({"radius": float("nan")}, "Given reports the metric 'radius' as nan, which is not a finite number"),
        ({"a": torch.tensor(1.0), "b": torch.tensor(float("inf"))}, "Given reports the metric 'b' as inf"),
        ({"method": "kl"}, "Given reports the metric 'method' as 'kl'. Give a float or a real tensor"),
        ({"all": torch.ones(1)}, r"Given reports the metric 'all' as tensor\(\[1.\]\)"),
        ({"none": None}, "Given reports the metric 'none' as None"),
        ({"odd": torch.tensor(1j)}, "Given reports the metric 'odd'"),
        ({"yes": True}, "Given reports the metric 'yes' as True"),
    ],
)
def test_metrics_that_cannot_be_recorded_are_refused(metrics, message):
    with pytest.raises(ModelError, match=message):
        plain_metrics(Given(None), metrics)


def test_who_weighs_what():
    plain, whole = Given(None), Given(None, Needs(whole_batch=True))
    both = Told(None, Needs(whole_batch=True, dataset_every=0.5))
    assert [weighs_whole_batch(r) for r in (plain, whole, Told(None), both)] == [False, True, True, False]
    assert [weighs_dataset(r) for r in (plain, whole, both)] == [False, False, True]
    assert isinstance(Told(None), Weighing)
    assert not isinstance(plain, Weighing)


def test_dataset_weights_survive_json_bit_for_bit():
    weights = torch.tensor([1 / 3, 1e-30, 2.0, 16777217 / 7])
    kept = DatasetValues(4, 3, (1.0,))
    assert [kept.due(done) for done in range(5)] == [True, False, False, True, False]
    assert kept.of(torch.arange(4))[0].tolist() == [1.0] * 4
    kept.put((weights,), 4)
    other = DatasetValues(4, 3, (1.0,))
    assert isinstance(other, Stateful)
    other.load_state_dict(json.loads(json.dumps(kept.state_dict())))
    assert other.measured_at == 4
    assert torch.equal(other.of(torch.tensor([3, 0, 1, 2]))[0], weights[[3, 0, 1, 2]])


def test_dataset_weights_of_other_data_are_refused():
    with pytest.raises(StoreError, match="values of 3 pairs, the training set has 4"):
        DatasetValues(4, 1, (1.0,)).load_state_dict(DatasetValues(3, 1, (1.0,)).state_dict())

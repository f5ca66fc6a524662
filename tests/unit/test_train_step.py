"""The algebra against values worked by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sera_core.protocols import Needs
from sera_core.records import PairBatch, PairLogps
from sera_core.train.effective import Part, fix, needs_whole_batch
from sera_core.train.metrics import micro_sums, step_metrics
from sera_core.train.step import Algebra, batch_stats, concatenate, pair_losses, reduce

NOTHING, REFERENCE, WHOLE = Needs(), Needs(reference=True), Needs(whole_batch=True)


@dataclasses.dataclass(frozen=True)
class Square:
    """L(h) = (h - 1)^2, confidence sigmoid(h). Refuses the flipped side where `one_sided`."""

    one_sided: bool = False
    needs: Needs = REFERENCE

    def margins(self, logps):
        return logps.chosen_policy - logps.chosen_reference - (logps.rejected_policy - logps.rejected_reference)

    def losses(self, margins):
        assert not self.one_sided or bool((margins >= 0).all()), "flipped loss evaluated"
        return (margins - 1) ** 2

    def confidence(self, margins):
        return torch.sigmoid(margins)


class Anchor(Square):
    def anchor(self, logps):
        return -logps.chosen_policy


@dataclasses.dataclass(frozen=True)
class Shift:
    by: float
    needs: Needs = NOTHING

    def apply(self, margins, batch):
        return margins * batch.progress + self.by


@dataclasses.dataclass(frozen=True)
class Flip:
    rate: float = 0.0
    needs: Needs = NOTHING

    def flip_weights(self, confidence, batch):
        assert not confidence.requires_grad
        return torch.full_like(confidence, 1 - self.rate), torch.full_like(confidence, self.rate)


@dataclasses.dataclass(frozen=True)
class ByLoss:
    """Weight n loss / sum of losses."""

    needs: Needs = WHOLE

    def weights(self, stats):
        assert not stats.losses.requires_grad
        return stats.losses / stats.losses.sum() * len(stats.losses)


def logps(chosen, rejected=None):
    policy = torch.tensor(chosen, requires_grad=True)
    count = len(chosen)
    other = torch.tensor(rejected or [-2.0] * count)
    lengths = torch.full((count,), 4)
    return PairLogps(policy, other, lengths, lengths, torch.full((count,), -3.0), torch.full((count,), -2.0))


def algebra(objective=None, smoother=None, transforms=(), reweighter=None):
    return Algebra(objective or Square(), transforms, smoother or Flip(), reweighter or ByLoss())


def batch(record, progress=0.5):
    return PairBatch(record, progress, 1)


def test_losses_of_two_pairs_by_hand():
    # h = (-1, -3) - -3 - (-2 - -2) = 2, 0; after x 0.5 + 1: 2, 1; loss .75 (h-1)^2 + .25 (-h-1)^2.
    result = pair_losses(algebra(smoother=Flip(0.25), transforms=(Shift(1.0),)), batch(logps([-1.0, -3.0])))
    assert result.base_margins.tolist() == [2.0, 0.0]
    assert result.margins.tolist() == [2.0, 1.0]
    assert result.confidences.tolist() == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))])
    assert result.losses.tolist() == [0.75 * 1 + 0.25 * 9, 0.75 * 0 + 0.25 * 4]
    assert result.anchors is None
    # (2 x 3 + 1 x 1) / 7 pairs of the effective batch.
    assert float(reduce(result, torch.tensor([2.0, 1.0]), 7).detach()) == 1.0


def test_transforms_act_in_order():
    first = pair_losses(algebra(transforms=(Shift(1.0), Shift(2.0))), batch(logps([-1.0])))
    second = pair_losses(algebra(transforms=(Shift(2.0), Shift(1.0))), batch(logps([-1.0])))
    assert (first.margins.item(), second.margins.item()) == (3.0, 2.5)


def test_anchor_is_added_unweighted():
    result = pair_losses(algebra(Anchor()), batch(logps([-1.0, -3.0])))
    assert result.anchors.tolist() == [1.0, 3.0]
    # losses (2 - 1)^2 and (0 - 1)^2, weights 0 and 1, anchors 1 + 3, over 2 pairs.
    assert reduce(result, torch.tensor([0.0, 1.0]), 2).item() == 2.5


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=9))
@settings(max_examples=50, deadline=None)
def test_zero_flip_is_the_base_loss_bit_for_bit(chosen):
    record = logps(chosen)
    smoothed = pair_losses(algebra(), batch(record)).losses
    assert torch.equal(smoothed, Square().losses(Square().margins(record)))


def test_zero_flip_does_not_evaluate_the_flipped_loss():
    one_sided = algebra(Square(one_sided=True))
    assert pair_losses(one_sided, batch(logps([-1.0]))).losses.item() == 1.0
    with pytest.raises(AssertionError, match="flipped loss evaluated"):
        pair_losses(algebra(Square(one_sided=True), Flip(0.1)), batch(logps([-1.0])))


def test_a_given_split_replaces_the_smoother():
    split = (torch.tensor([0.5]), torch.tensor([0.5]))
    assert pair_losses(algebra(), batch(logps([-1.0])), split).losses.item() == 0.5 * 1 + 0.5 * 9


def test_gradient_flows_through_losses_only():
    record = logps([-1.0, -3.0])
    result = pair_losses(algebra(smoother=Flip(0.25)), batch(record))
    weights = ByLoss().weights(batch_stats(result, torch.zeros(2), 0.5))
    reduce(result, weights, 2).backward()
    # d/dh [.75 (h-1)^2 + .25 (h+1)^2] = 2h - 1: 3 and -1; losses 3 and 1 give weights 1.5 and .5.
    assert record.chosen_policy.grad.tolist() == [1.5 * 3 / 2, 0.5 * -1 / 2]


def test_concatenate_keeps_order_and_absent_references():
    whole = concatenate([logps([-1.0]), logps([-2.0, -3.0])])
    assert whole.chosen_policy.tolist() == [-1.0, -2.0, -3.0]
    assert not whole.chosen_policy.requires_grad
    bare = dataclasses.replace(logps([-1.0]), chosen_reference=None, rejected_reference=None)
    assert concatenate([bare, bare]).chosen_reference is None


def test_fixed_quantities_do_not_depend_on_the_split_over_slots_and_ranks():
    values = [-1.0, -2.5, -0.5, -3.0, -1.5]
    nan = float("nan")

    def part(*chosen):
        return Part(logps(list(chosen)), torch.full((len(chosen),), nan))

    chosen = algebra(smoother=Flip(0.1))
    filler = dataclasses.replace(part(-9.0), counted=False)
    (whole,) = fix(chosen, [[part(*values)]], 0, 0.5, 1)
    ranks = [[part(-1.0, -2.5), part(-1.5)], [part(-0.5, -3.0), filler]]
    first, second = fix(chosen, ranks, 0, 0.5, 1), fix(chosen, ranks, 1, 0.5, 1)
    assert torch.equal(torch.cat([first[0].weights, second[0].weights, first[1].weights]), whole.weights)
    assert second[1] is None
    assert first[0].keep.tolist() == pytest.approx([0.9, 0.9])


def test_which_algebras_need_the_whole_batch():
    @dataclasses.dataclass(frozen=True)
    class Ones:
        needs: Needs = NOTHING

    class Remembers(Flip):
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    assert needs_whole_batch(algebra())
    assert not needs_whole_batch(algebra(reweighter=Ones()))
    assert needs_whole_batch(algebra(reweighter=Ones(), smoother=Remembers()))
    assert needs_whole_batch(algebra(reweighter=Ones(), smoother=Flip(needs=WHOLE)))


def test_metrics_average_over_micro_batches():
    rows, weights = [], [torch.tensor([3.0, 1.0]), torch.tensor([0.0])]
    for chosen, weight in zip(([-1.0, -3.0], [-4.0]), weights, strict=True):
        record = logps(chosen)
        rows.append(micro_sums(pair_losses(algebra(), batch(record)), record, weight))
    metrics = step_metrics(torch.stack(rows), reference=True, weighted=True)
    assert metrics["pairs"] == 3
    assert metrics["margin_mean"] == pytest.approx((2 + 0 - 1) / 3)
    assert metrics["loss"] == pytest.approx((3 * 1 + 1 * 1 + 0 * 4) / 3)
    assert metrics["accuracy"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert metrics["chosen_logps"] == pytest.approx(-8 / 3)
    assert metrics["chosen_logps_per_token"] == pytest.approx(-8 / 12)
    assert metrics["chosen_log_ratio"] == pytest.approx((2 + 0 - 1) / 3)
    assert metrics["rejected_log_ratio"] == 0
    assert metrics["chosen_below_reference"] == pytest.approx(1 / 3)
    assert metrics["weight_max"] == 3
    assert metrics["effective_sample_size"] == pytest.approx(16 / 10)
    plain = step_metrics(torch.stack(rows), reference=False, weighted=False)
    assert not {"chosen_log_ratio", "weight_max", "effective_sample_size"} & plain.keys()
    assert all(type(value) is float for value in metrics.values())

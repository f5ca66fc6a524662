"""The algebra against values worked by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sera_core.errors import ModelError
from sera_core.protocols import Needs
from sera_core.records import PairBatch, PairLogps, Weighted
from sera_core.train.effective import Moment, Part, fix, needs_whole_batch, weigh_dataset
from sera_core.train.metrics import micro_sums, reserved_names, step_metrics
from sera_core.train.step import Algebra, batch_stats, concatenate, pair_losses, reduce

NOTHING, REFERENCE, WHOLE = Needs(), Needs(reference=True), Needs(whole_batch=True)
DATASET = Needs(dataset_every=1.0)
MOMENT = Moment(step=4, progress=0.5, iteration=1)
NAN = float("nan")


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


class Telling(ByLoss):
    def weigh(self, stats):
        return Weighted(self.weights(stats), {"pairs_seen": len(stats.losses), "worst": stats.losses.max()})


def part(*chosen):
    ids = tuple(f"pair{value}" for value in chosen)
    return Part(ids, logps(list(chosen)), torch.full((len(chosen),), float("nan")))


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
    chosen = algebra(smoother=Flip(0.1), reweighter=Telling())
    filler = dataclasses.replace(part(-9.0), counted=False)
    (whole,), told = fix(chosen, [[part(*values)]], 0, MOMENT)
    ranks = [[part(-1.0, -2.5), part(-1.5)], [part(-0.5, -3.0), filler]]
    (first, told_first), (second, told_second) = (fix(chosen, ranks, rank, MOMENT) for rank in (0, 1))
    # h = 2.5 is the worst: .9 (h-1)^2 + .1 (h+1)^2.
    assert told == told_first == told_second == {"pairs_seen": 5.0, "worst": 3.25}
    assert torch.equal(torch.cat([first[0].weights, second[0].weights, first[1].weights]), whole.weights)
    assert second[1] is None
    assert first[0].keep.tolist() == pytest.approx([0.9, 0.9])


class Remembers(Flip):
    """Flips at the share of calls it has had; refuses to be asked about a filler."""

    calls = 0

    def flip_weights(self, confidence, batch):
        type(self).calls += 1
        return super().flip_weights(confidence, batch)

    def state_dict(self):
        return {"calls": type(self).calls}

    def load_state_dict(self, state):
        type(self).calls = state["calls"]


class RemembersShift(Shift):
    calls = 0

    def apply(self, margins, batch):
        type(self).calls += 1
        return super().apply(margins, batch)

    def state_dict(self):
        return {"calls": type(self).calls}

    def load_state_dict(self, state):
        type(self).calls = state["calls"]


def test_looking_ahead_leaves_no_trace_in_components_that_act_later():
    chosen = algebra(smoother=Remembers(), transforms=(RemembersShift(1.0),))
    fix(chosen, [[part(-1.0)]], 0, MOMENT)
    # The smoother acts there and then; the transform will be asked again with gradient.
    assert (Remembers.calls, RemembersShift.calls) == (1, 0)
    weigh_dataset(chosen, [part(-1.0)], MOMENT)
    assert (Remembers.calls, RemembersShift.calls) == (1, 0)


def test_a_dataset_is_weighed_as_one():
    chosen = algebra(smoother=Flip(0.25), reweighter=Telling(needs=DATASET))
    # h = 2, 0, -1: loss .75 (h-1)^2 + .25 (h+1)^2 = 3, 1, 3.
    weighed = weigh_dataset(chosen, [part(-1.0, -3.0), part(-4.0)], MOMENT)
    assert weighed.weights.tolist() == pytest.approx([9 / 7, 3 / 7, 9 / 7])
    assert weighed.metrics == {"pairs_seen": 3.0, "worst": 3.0}
    # The effective batch then decides on smoothing alone.
    (fixed,), told = fix(chosen, [[part(-1.0)]], 0, MOMENT)
    assert (fixed.weights, fixed.flip.tolist(), told) == (None, [0.25], {})


@pytest.mark.parametrize("look", [lambda *a: fix(a[0], [a[1]], 0, a[2]), weigh_dataset])
def test_a_loss_that_is_not_finite_is_named_before_anything_is_weighed(look):
    parts = [part(-1.0, -3.0), dataclasses.replace(part(float("inf")), ids=("odd",))]
    with pytest.raises(ModelError, match="not finite at optimiser step 7 for pairs 'odd'"):
        look(algebra(), parts, Moment(7, 0.5, 1))


def test_which_algebras_need_the_whole_batch():
    @dataclasses.dataclass(frozen=True)
    class Ones:
        needs: Needs = NOTHING

    class OnesRemembers(Remembers):
        needs: Needs = NOTHING

    assert needs_whole_batch(algebra())
    assert not needs_whole_batch(algebra(reweighter=Ones()))
    assert needs_whole_batch(algebra(reweighter=Ones(), smoother=Remembers()))
    assert needs_whole_batch(algebra(reweighter=Ones(), smoother=Flip(needs=WHOLE)))
    # Whoever has a state or tells how it weighed is asked once per step.
    assert needs_whole_batch(algebra(reweighter=OnesRemembers()))
    assert needs_whole_batch(algebra(reweighter=Telling(needs=NOTHING)))
    assert not needs_whole_batch(algebra(reweighter=Telling(needs=DATASET)))
    assert needs_whole_batch(algebra(reweighter=Telling(needs=DATASET), smoother=Remembers()))


def rows_of(chosen, weights, flipped, smoother=None):
    """The sums of micro-batches given as lists of lists."""
    rows = []
    for values, weight, known in zip(chosen, weights, flipped, strict=True):
        record = logps(values)
        result = pair_losses(algebra(smoother=smoother), batch(record))
        rows.append(micro_sums(result, record, torch.tensor(weight), torch.tensor(known)))
    return torch.stack(rows)


def test_metrics_average_over_micro_batches():
    rows = rows_of([[-1.0, -3.0], [-4.0]], [[3.0, 1.0], [0.0]], [[NAN, NAN], [NAN]])
    metrics = step_metrics(rows, reference=True, weighted=True)
    assert metrics["pairs"] == 3
    assert metrics["margin_mean"] == pytest.approx((2 + 0 - 1) / 3)
    assert metrics["loss"] == pytest.approx((3 * 1 + 1 * 1 + 0 * 4) / 3)
    assert metrics["accuracy"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert metrics["chosen_logps"] == pytest.approx(-8 / 3)
    assert metrics["chosen_logps_per_token"] == pytest.approx(-8 / 12)
    assert metrics["chosen_log_ratio"] == pytest.approx((2 + 0 - 1) / 3)
    assert metrics["rejected_log_ratio"] == 0
    assert metrics["chosen_below_reference"] == pytest.approx(1 / 3)
    assert metrics["weight_mean"] == pytest.approx(4 / 3)
    assert metrics["weight_max"] == 3
    assert metrics["effective_sample_size"] == pytest.approx(16 / 10)
    assert all(type(value) is float for value in metrics.values())
    # Nothing is known of these labels and nothing is smoothed.
    assert not any("flip" in name or "clean" in name for name in metrics)
    plain = step_metrics(rows, reference=False, weighted=False)
    assert not {"chosen_log_ratio", "weight_mean", "weight_max", "effective_sample_size"} & plain.keys()


class FlipLeft(Flip):
    """Flips only pairs the model disagrees with."""

    def flip_weights(self, confidence, batch):
        flip = self.rate * (confidence < 0.5)
        return 1 - flip, flip


def test_known_flips_by_hand():
    # Margins 2, 0, -1, -2, confidences below one half for the last two.
    chosen, weights, flipped = [[-1.0, -3.0], [-4.0, -5.0]], [[2.0, 1.0], [0.5, 3.0]], [[0.0, NAN], [1.0, 1.0]]
    rows = rows_of(chosen, weights, flipped, FlipLeft(0.3))
    metrics = step_metrics(rows, reference=True, weighted=True)
    assert metrics["flipped_share"] == pytest.approx(2 / 3)
    # Weights above 1: one clean pair, one flipped.
    assert metrics["flipped_among_up_weighted"] == pytest.approx(1 / 2)
    assert metrics["weight_flipped"] == pytest.approx((0.5 + 3.0) / 2)
    assert metrics["weight_clean"] == 2.0
    assert metrics["flip_mean"] == pytest.approx(0.6 / 4)
    assert metrics["flip_flipped"] == pytest.approx(0.3)
    assert metrics["flip_clean"] == 0.0
    # Without a reweighter the smoother alone is reported, and the other way round.
    smoothed = step_metrics(rows, reference=True, weighted=False)
    assert {name for name in smoothed if name.startswith(("flip", "weight"))} == {
        "flipped_share",
        "flip_mean",
        "flip_flipped",
        "flip_clean",
    }
    weighted = step_metrics(rows_of(chosen, weights, flipped), reference=True, weighted=True)
    assert "flip_mean" not in weighted
    assert weighted["flipped_share"] == metrics["flipped_share"]
    untouched = step_metrics(rows_of(chosen, weights, flipped), reference=True, weighted=False)
    assert not any(name.startswith(("flip", "weight")) for name in untouched)


def test_metrics_that_do_not_exist_are_left_out():
    # Known labels are all wrong, no weight is above 1 but for rounding, and a smoother acts on unknown labels.
    rows = rows_of([[-1.0, -4.0]], [[1.0, 1.0000002]], [[1.0, NAN]], FlipLeft(0.3))
    metrics = step_metrics(rows, reference=True, weighted=True)
    assert metrics["flipped_share"] == 1.0
    assert metrics["weight_flipped"] == 1.0
    assert not {"flipped_among_up_weighted", "weight_clean", "flip_clean"} & metrics.keys()
    unknown = step_metrics(rows_of([[-4.0]], [[1.0]], [[NAN]], Flip(0.3)), reference=True, weighted=True)
    assert unknown["flip_mean"] == pytest.approx(0.3)
    assert not {"flipped_share", "flip_flipped", "weight_flipped"} & unknown.keys()


@given(
    st.lists(
        st.tuples(st.floats(-6, 0, width=32), st.floats(0, 4, width=32), st.sampled_from([0.0, 1.0, NAN])),
        min_size=2,
        max_size=9,
    ),
    st.data(),
)
@settings(max_examples=40, deadline=None)
def test_step_metrics_do_not_depend_on_the_split(pairs, data):
    cut = data.draw(st.integers(1, len(pairs) - 1))
    columns = [list(column) for column in zip(*pairs, strict=True)]
    whole = step_metrics(rows_of(*([c] for c in columns), Flip(0.2)), reference=True, weighted=True)
    split = step_metrics(rows_of(*([c[:cut], c[cut:]] for c in columns), Flip(0.2)), reference=True, weighted=True)
    assert whole == pytest.approx(split, rel=1e-5, abs=1e-6)


def test_reserved_names_are_those_of_a_record():
    rows = torch.ones(1, 23, dtype=torch.float64)
    metrics = step_metrics(rows, reference=True, weighted=True)
    assert len(metrics) == 20
    others = {"iteration", "step", "epoch", "learning_rate", "grad_norm", "reweighted_at", "resmoothed_at"}
    assert reserved_names() == metrics.keys() | others

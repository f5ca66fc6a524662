"""Flips of the most confident labels."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sera_core.errors import ModelError
from sera_core.protocols import Needs
from sera_core.records import PairBatch
from sera_core.testing.samples import pair_logps
from sera_plugin_dro import LabelFlip, Schedule


def flips(smoother, confidences, progress=0.0, dtype=torch.float64):
    batch = PairBatch(pair_logps(), progress=progress, iteration=1)
    keep, flip = smoother.flip_weights(torch.tensor(confidences, dtype=dtype), batch)
    torch.testing.assert_close(keep + flip, torch.ones_like(keep))
    assert keep.dtype == dtype
    return flip.tolist()


def test_the_most_confident_flip_first():
    # Budget 4 x 0.3 = 1.2 flips: the surest whole, a fifth of the next.
    assert flips(LabelFlip(radius=0.3), [0.6, 0.9, 0.2, 0.8]) == pytest.approx([0, 1, 0, 0.2])


def test_a_dear_flip_takes_more_of_the_budget():
    assert flips(LabelFlip(radius=0.3, cost=2.0), [0.6, 0.9, 0.2, 0.8]) == pytest.approx([0, 0.6, 0, 0])


def test_labels_the_policy_doubts_are_never_flipped():
    assert flips(LabelFlip(radius=5.0), [0.6, 0.9, 0.2, 0.5]) == [1, 1, 0, 0]


def test_equal_confidences_share():
    assert flips(LabelFlip(radius=0.25), [0.7, 0.7, 0.7, 0.1]) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])


def test_certainty_is_the_most_confident_of_all():
    for dtype in (torch.float32, torch.float64):
        assert flips(LabelFlip(radius=0.25), [0.0, 0.999, 1.0, 0.5], dtype=dtype) == [0, 0, 1, 0]


def test_a_batch_of_one():
    assert flips(LabelFlip(radius=0.25), [0.9]) == [0.25]
    assert flips(LabelFlip(radius=0.25), [0.1]) == [0]


def test_radius_0_changes_nothing_exactly():
    assert LabelFlip.neutral() == LabelFlip(radius=0.0)
    assert flips(LabelFlip(radius=0.0), [0.0, 0.5, 0.9, 1.0], dtype=torch.float32) == [0, 0, 0, 0]


def test_the_radius_follows_its_schedule():
    smoother = LabelFlip(radius=Schedule(0.0, 0.5))
    assert flips(smoother, [0.6, 0.9]) == [0, 0]
    assert flips(smoother, [0.6, 0.9], progress=1.0) == [0, 1]


def test_the_loss_is_the_worst_within_the_budget():
    # The same problem by brute force over all flips of whole labels that the budget allows.
    confidences = torch.tensor([0.55, 0.7, 0.9, 0.3, 0.95], dtype=torch.float64)
    margins = torch.logit(confidences)
    flip = torch.tensor(flips(LabelFlip(radius=0.4), confidences.tolist()))
    kept, flipped = torch.nn.functional.softplus(-margins), torch.nn.functional.softplus(margins)
    found = ((1 - flip) * kept + flip * flipped).mean()
    subsets = [torch.tensor([float(bits >> i & 1) for i in range(5)]) for bits in range(32)]
    worst = max(float(((1 - s) * kept + s * flipped).mean()) for s in subsets if s.sum() <= 2)
    assert float(found) == pytest.approx(worst)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12), st.floats(0, 1), st.randoms(use_true_random=False))
def test_flips_keep_the_budget_and_do_not_depend_on_order(confidences, radius, random):
    flip = flips(LabelFlip(radius=radius), confidences)
    assert all(0 <= f <= 1 and math.isfinite(f) for f in flip)
    assert sum(flip) <= radius * len(flip) + 1e-9
    order = list(range(len(flip)))
    random.shuffle(order)
    assert flips(LabelFlip(radius=radius), [confidences[i] for i in order]) == pytest.approx([flip[i] for i in order])


def test_needs_the_whole_batch():
    assert LabelFlip().needs == Needs(whole_batch=True)


def test_a_confidence_that_is_no_number_is_refused():
    with pytest.raises(ModelError, match=r"smoother 'label_flip': margins: .*nan"):
        flips(LabelFlip(), [0.5, math.nan])

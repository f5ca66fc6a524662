import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sera_core.builtin.best_worst import BestWorst
from sera_core.builtin.dpo import DPO
from sera_core.builtin.hinge import Hinge
from sera_core.builtin.ipo import IPO
from sera_core.builtin.orpo import ORPO
from sera_core.builtin.selectors import Random, Threshold, Top
from sera_core.builtin.share import resolve_share
from sera_core.builtin.simpo import SimPO
from sera_core.records import Candidates
from sera_core.testing.samples import response

finite = st.floats(-1e4, 1e4)
margin_arrays = arrays(np.float64, st.integers(0, 30), elements=finite)
objectives = st.sampled_from([DPO(), DPO(0.9), IPO(), IPO(1.0), Hinge(), SimPO(), SimPO(10.0, 3.0), ORPO(), ORPO(1.0)])


@given(objectives, finite)
def test_losses_and_confidence_are_finite(objective, margin):
    h = torch.tensor([margin], dtype=torch.float32, requires_grad=True)
    loss = objective.losses(h)
    (gradient,) = torch.autograd.grad(loss.sum(), h)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()
    assert loss.item() >= 0
    assert 0 <= objective.confidence(h).item() <= 1


@given(objectives, st.floats(-20, 20))
def test_confidence_of_both_labels_sums_to_one(objective, margin):
    h = torch.tensor([margin], dtype=torch.float64)
    assert math.isclose((objective.confidence(h) + objective.confidence(-h)).item(), 1.0, rel_tol=1e-12)


@given(st.sampled_from([DPO(), Hinge(), SimPO(), ORPO()]), finite, finite)
def test_losses_but_ipo_never_increase_in_the_margin(objective, first, second):
    low, high = sorted((first, second))
    losses = objective.losses(torch.tensor([low, high], dtype=torch.float64))
    assert losses[1] <= losses[0]


@given(margin_arrays, st.integers(0, 40))
def test_top_keeps_nothing_worse_than_what_it_leaves(margins, count):
    chosen = Top(count=count).select(margins, len(margins), np.random.default_rng(0))
    left = np.setdiff1d(np.arange(len(margins)), chosen)
    assert len(chosen) == min(count, len(margins))
    if len(chosen) and len(left):
        assert margins[chosen].min() >= margins[left].max()


@given(margin_arrays, st.floats(0, 1), st.integers(0, 50))
def test_share_is_within_half_a_pair(margins, fraction, extra):
    pool = len(margins) + extra
    kept = resolve_share(fraction, None, pool, pool)
    assert abs(kept - fraction * pool) <= 0.5 + 1e-9
    assert len(Random(fraction=fraction).select(margins, pool, np.random.default_rng(0))) == min(kept, len(margins))


@given(margin_arrays, finite)
def test_threshold_splits_at_the_minimum(margins, minimum):
    chosen = Threshold(minimum=minimum).select(margins, len(margins), np.random.default_rng(0))
    assert (np.isin(np.arange(len(margins)), chosen) == (margins >= minimum)).all()


words = st.sampled_from(["red", "blue", "green", "dog", "", " "])


@given(st.lists(st.lists(st.tuples(words, st.integers(-2, 2)), min_size=1, max_size=5), min_size=1, max_size=5))
def test_best_worst_accounts_for_every_prompt(groups):
    built = tuple(tuple(response(i, text) for text, _ in group) for i, group in enumerate(groups))
    scores = [np.array([score for _, score in group], dtype=float) for group in groups]
    made = BestWorst().label(Candidates(tuple(g[0].prompt for g in built), built), scores, np.random.default_rng(0))
    assert made.pool == len(groups)
    for pair in made.pairs:
        texts = [r.text for r in built[int(pair.prompt.id[1:])]]
        by_text = dict(reversed(list(zip(texts, scores[int(pair.prompt.id[1:])], strict=True))))
        assert by_text[pair.chosen.text] > by_text[pair.rejected.text]
        assert pair.chosen.text.strip()
        assert pair.rejected.text.strip()

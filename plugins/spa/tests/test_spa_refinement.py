"""Both smoothers: values by hand, an independent implementation over many steps, identities, state, options."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spa_numpy import paper, released

from sera_core.errors import ConfigError
from sera_core.protocols import Needs, Smoothing, Stateful
from sera_core.records import PairBatch
from sera_core.testing.samples import pair_logps
from sera_plugin_spa import OfficialCodeRefinement, SelfRefinement

BOTH = (SelfRefinement, OfficialCodeRefinement)


def at(progress):
    return PairBatch(pair_logps(), progress, iteration=2)


def split(smoother, confidences, progress=0.5):
    return smoother.smooth(torch.tensor(confidences, dtype=torch.float64), at(progress))


def random_steps(seed, steps=40, sizes=(1, 3, 8, 20), low=-4.0, high=6.0):
    """Confidences as float32 gives them, in steps of uneven size, with the progress of each."""
    rng = np.random.default_rng(seed)
    batches = [rng.uniform(low, high, rng.choice(sizes)) for _ in range(steps)]
    return [(torch.sigmoid(torch.tensor(b, dtype=torch.float32)), i / steps) for i, b in enumerate(batches)]


def assert_follows(smoother, steps, expected):
    for (confidence, progress), (tau, z, keep, flip) in zip(steps, expected, strict=True):
        found = smoother.smooth(confidence, at(progress))
        assert found.metrics["threshold"] == pytest.approx(tau, rel=1e-12, abs=1e-12)
        assert found.metrics["flagged"] == pytest.approx(z.mean(), abs=1e-12)
        assert found.metrics["refining"] == float(progress >= smoother.warmup)
        np.testing.assert_array_equal((found.flip != 0).numpy(), flip != 0)
        np.testing.assert_allclose(found.keep.numpy(), keep, rtol=1e-6)
        np.testing.assert_allclose(found.flip.numpy(), flip, rtol=1e-6)
        assert found.keep.dtype == confidence.dtype


def test_paper_worked_by_hand():
    # sorted .1 .2 .4 .6 .9; the 0.3-quantile lies at 0.3 x 4 = 1.2: .2 + .2 x (.4 - .2) = .24
    found = split(SelfRefinement(alpha=0.25, share=0.3), [0.9, 0.1, 0.6, 0.2, 0.4])
    assert found.metrics == {"threshold": pytest.approx(0.24), "flagged": 0.4, "refining": 1.0}
    assert found.flip.tolist() == [0.0, 0.25, 0.0, 0.25, 0.0]
    assert found.keep.tolist() == [1.0, 0.75, 1.0, 0.75, 1.0]


def test_equal_to_the_threshold_is_not_below_it():
    # 0.25 x 4 = 1: tau is the second smallest itself.
    assert split(SelfRefinement(share=0.25), [0.9, 0.1, 0.6, 0.2, 0.4]).flip.tolist() == [0.0, 0.1, 0.0, 0.0, 0.0]
    assert not split(SelfRefinement(share=0.5), [0.5] * 7).flip.any()


def test_the_window_counts_the_step_itself_and_forgets_the_oldest():
    smoother = SelfRefinement(share=0.5, window=4)
    assert split(smoother, [0.1, 0.2]).metrics["threshold"] == pytest.approx(0.15)
    assert split(smoother, [0.8, 0.9]).metrics["threshold"] == pytest.approx(0.5)
    found = split(smoother, [0.4])  # holds .2 .8 .9 .4
    assert found.metrics["threshold"] == pytest.approx(0.6)
    assert found.flip.tolist() == [0.1]
    # Of a step larger than the window its last samples count: .9 .8 .7 .6
    assert split(smoother, [0.1, 0.9, 0.8, 0.7, 0.6]).metrics["threshold"] == pytest.approx(0.75)


def test_the_warm_up_fills_the_window_and_flags_nothing():
    smoother = SelfRefinement(share=0.5, warmup=0.2)
    early = split(smoother, [0.9, 0.1], 0.19)
    assert (early.metrics["refining"], early.metrics["flagged"]) == (0.0, 0.0)
    assert early.keep.tolist() == [1.0, 1.0]
    assert smoother.recent == [0.9, 0.1]
    late = split(smoother, [0.3, 0.8], 0.2)
    assert late.metrics["threshold"] == pytest.approx(0.55)
    assert late.flip.tolist() == [0.1, 0.0]


def test_batch_and_dataset_scopes_look_at_what_they_are_handed():
    for scope in ("batch", "dataset"):
        smoother = SelfRefinement(share=0.5, threshold_scope=scope)
        split(smoother, [0.1, 0.1, 0.1])
        found = split(smoother, [0.6, 0.8])
        assert found.metrics["threshold"] == pytest.approx(0.7)
        assert found.flip.tolist() == [0.1, 0.0]
        assert smoother.state_dict() == {"window": []}


def test_released_code_worked_by_hand():
    logits = [2.0, -1.0, 0.0, 1.0, -3.0]
    xi = torch.sigmoid(torch.tensor(logits, dtype=torch.float64)).tolist()
    # Ring of 4 and share .25: tau = mean of the 2nd and 3rd smallest, from the 4th pair on; 0 before.
    smoother = OfficialCodeRefinement(alpha=0.5, share=0.25, window=4)
    # 2 > 0; -1 <= 0; 0 <= 0; then {2, -1, 0, 1}: tau .5, 1 > .5; then {-1, 0, 1, -3}: tau -.5, -3 <= -.5
    found = split(smoother, xi)
    assert (found.flip > 0).tolist() == [False, True, True, False, True]
    assert found.flip[1].item() == 0.5
    assert found.metrics["threshold"] == pytest.approx(-0.5)
    assert smoother.ring == pytest.approx([-1.0, 0.0, 1.0, -3.0])


def test_a_ring_of_means_judges_single_margins():
    xi = torch.sigmoid(torch.tensor([3.0, -1.0, 1.0, 5.0, 4.0], dtype=torch.float64)).tolist()
    smoother = OfficialCodeRefinement(share=0.0, window=3, micro_batch=2)
    found = split(smoother, xi)
    assert smoother.ring == pytest.approx([1.0, 3.0, 4.0])
    # tau is 0 for the first two micro-batches and (1 + 3) / 2 for the last one.
    assert (found.flip > 0).tolist() == [False, True, False, False, False]
    assert found.metrics["threshold"] == pytest.approx(2.0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scope", ["window", "batch"])
@pytest.mark.parametrize(
    ("alpha", "share", "warmup"), [(0.1, 0.1, 0.2), (0.7, 0.45, 0.0), (1.0, 0.0, 0.5), (0.0, 0.3, 0.2)]
)
def test_paper_follows_numpy(seed, scope, alpha, share, warmup):
    steps = random_steps(seed)
    smoother = SelfRefinement(alpha=alpha, share=share, warmup=warmup, threshold_scope=scope)
    expected = list(paper(steps, alpha=alpha, share=share, warmup=warmup, scope=scope))
    assert_follows(smoother, steps, expected)
    if alpha and share:
        assert 0 < sum(z.sum() for _, z, _, _ in expected) < sum(len(z) for _, z, _, _ in expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.1, "share": 0.1, "warmup": 0.2},
        {"alpha": 0.5, "share": 0.3, "warmup": 0.0, "window": 20, "micro_batch": 4},
        {"alpha": 1.0, "share": 0.0, "warmup": 0.5, "window": 7, "micro_batch": 3},
    ],
    ids=str,
)
def test_released_code_follows_numpy(seed, options):
    steps = random_steps(seed)
    expected = list(released(steps, **options))
    assert_follows(OfficialCodeRefinement(**options), steps, expected)
    assert any(tau != 0 for tau, *_ in expected)


@pytest.mark.parametrize(
    "smoother",
    [
        *(SelfRefinement(alpha=0.0, warmup=0.0), SelfRefinement(share=0.0, warmup=0.0), SelfRefinement(warmup=1.0)),
        SelfRefinement(alpha=0.0, warmup=0.0, threshold_scope="batch"),
        SelfRefinement(share=0.0, warmup=0.0, window=3),
        OfficialCodeRefinement(alpha=0.0, warmup=0.0),
        OfficialCodeRefinement(warmup=1.0),
    ],
    ids=str,
)
def test_neutral_settings_are_exactly_neutral(smoother):
    for confidence, progress in random_steps(9):
        keep, flip = smoother.flip_weights(confidence, at(progress))
        assert torch.equal(keep, torch.ones_like(confidence))
        assert torch.equal(flip, torch.zeros_like(confidence))


@pytest.mark.parametrize("factory", BOTH)
def test_flip_weights_are_those_of_smooth(factory):
    asked, told = factory(warmup=0.0), factory(warmup=0.0)
    for confidence, progress in random_steps(2, steps=10):
        found = told.smooth(confidence, at(progress))
        for one, other in zip(asked.flip_weights(confidence, at(progress)), (found.keep, found.flip), strict=True):
            assert torch.equal(one, other)
    assert asked.state_dict() == told.state_dict()


@pytest.mark.parametrize("factory", BOTH)
def test_a_restored_state_continues_the_same(factory):
    steps = random_steps(5)
    whole, first = factory(), factory()
    for confidence, progress in steps[:17]:
        whole.smooth(confidence, at(progress))
        first.smooth(confidence, at(progress))
    second = factory()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for confidence, progress in steps[17:]:
        expected, found = whole.smooth(confidence, at(progress)), second.smooth(confidence, at(progress))
        assert torch.equal(found.flip, expected.flip)
        assert found.metrics == expected.metrics
    # The state handed out is a copy: training on does not move it.
    assert first.state_dict() != second.state_dict()


@pytest.mark.parametrize("factory", BOTH)
def test_components_do_not_share_their_state(factory):
    one, other = factory(), factory()
    split(one, [0.2, 0.7])
    assert list(other.state_dict().values()) == [[]]
    assert one == other
    assert "0.7" not in repr(one)


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 0.99), min_size=2, max_size=20), st.randoms(use_true_random=False))
def test_the_order_within_a_step_does_not_matter_to_a_large_window(values, random):
    order = list(range(len(values)))
    random.shuffle(order)
    straight, shuffled = SelfRefinement(share=0.3), SelfRefinement(share=0.3)
    for smoother in (straight, shuffled):
        split(smoother, [0.2, 0.5, 0.9])
    first, second = split(straight, values), split(shuffled, [values[i] for i in order])
    assert first.metrics == pytest.approx(second.metrics)
    assert first.metrics["threshold"] == second.metrics["threshold"]
    assert [first.flip[i].item() for i in order] == second.flip.tolist()


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_the_window_does_not_care_how_samples_were_batched(sizes):
    rng = np.random.default_rng(sum(sizes))
    values = rng.random(sum(sizes))
    parts, whole = SelfRefinement(window=10), SelfRefinement(window=10)
    for part in np.split(values, np.cumsum(sizes)[:-1]):
        split(parts, part.tolist())
    split(whole, values.tolist())
    assert parts.state_dict() == whole.state_dict() == {"window": values[-10:].tolist()}


@pytest.mark.parametrize("factory", BOTH)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-45])
def test_extreme_confidences_stay_finite(factory, value):
    smoother = factory(warmup=0.0)
    for _ in range(60):
        found = smoother.smooth(torch.tensor([value, 0.5]), at(0.5))
        assert all(math.isfinite(metric) for metric in found.metrics.values())
        assert torch.isfinite(found.keep).all()


@pytest.mark.parametrize("factory", BOTH)
def test_no_gradient_and_the_roles(factory):
    smoother = factory()
    confidence = torch.sigmoid(torch.linspace(-2, 2, 6)).requires_grad_()
    found = smoother.smooth(confidence, at(0.5))
    assert not found.keep.requires_grad
    assert not found.flip.requires_grad
    assert isinstance(smoother, Stateful)
    assert isinstance(smoother, Smoothing)


def test_needs():
    assert SelfRefinement().needs == Needs(extrapolation=0.5, whole_batch=True)
    assert SelfRefinement(extrapolation=0, threshold_scope="batch").needs == Needs(whole_batch=True)
    measured = Needs(extrapolation=0.5, dataset_every=0.5, dataset_from=0.3)
    assert SelfRefinement(threshold_scope="dataset", refresh=0.5, warmup=0.3).needs == measured
    assert OfficialCodeRefinement().needs == Needs(whole_batch=True)
    assert OfficialCodeRefinement(extrapolation=1.0).needs == Needs(extrapolation=1.0, whole_batch=True)


@pytest.mark.parametrize("factory", BOTH)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, "option alpha must be a number from 0 .no refinement. to 1; got -0.1"),
        ({"alpha": 1.1}, "option alpha"),
        ({"alpha": True}, "option alpha"),
        ({"share": 1.0}, "option share must be a share of the pairs, 0 <= share < 1"),
        ({"share": math.nan}, "option share"),
        ({"share": 10}, "option share"),
        ({"extrapolation": -1}, "option extrapolation must be a finite number >= 0"),
        ({"extrapolation": math.inf}, "option extrapolation"),
        ({"warmup": 1.5}, "option warmup must be a share of the training steps"),
        ({"warmup": "early"}, "option warmup"),
        ({"window": 0}, "option window must be a whole number >= .* .typically 50.; got 0"),
        ({"window": 10.5}, "option window"),
        ({"window": True}, "option window"),
    ],
    ids=str,
)
def test_bad_options_are_named(factory, options, message):
    with pytest.raises(ConfigError, match=f"smoother 'spa(_official_code)?': {message}"):
        factory(**options)


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (SelfRefinement, {"threshold_scope": "rank"}, "must be 'window' or 'batch' or 'dataset'; got 'rank'"),
        (
            SelfRefinement,
            {"threshold_scope": "batch", "window": 20},
            "option window = 20 is only read with threshold_scope: window and would be ignored. Remove window",
        ),
        (SelfRefinement, {"threshold_scope": "dataset", "window": 20}, "option window = 20 is only read with"),
        (SelfRefinement, {"refresh": 1.0}, "option refresh = 1.0 is only read with threshold_scope: dataset"),
        (SelfRefinement, {"threshold_scope": "batch", "refresh": 1.0}, "option refresh = 1.0 is only read with"),
        (SelfRefinement, {"threshold_scope": "dataset", "refresh": 0.0}, "option refresh must be a finite number of"),
        (OfficialCodeRefinement, {"micro_batch": 0}, "option micro_batch must be a whole number >= 1"),
        (OfficialCodeRefinement, {"share": 0.98}, "share = 0.98 leaves no entry above it in a ring of 50"),
        (OfficialCodeRefinement, {"window": 1}, "option window must be a whole number >= 2"),
    ],
    ids=str,
)
def test_options_nobody_would_read_are_refused(factory, options, message):
    with pytest.raises(ConfigError, match=message):
        factory(**options)

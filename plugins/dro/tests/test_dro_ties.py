"""Rounding errors never decide which pair is worse: values that agree up to them are ties."""

import pytest
import torch
from dro_batches import stats_of

from sera_core.catalog import load_catalog
from sera_core.records import PairBatch, PairLogps
from sera_plugin_dro.arrays import steady

CATALOG = load_catalog()
NOISE = torch.tensor([3e-8, -2e-8, 1e-8, -4e-8, 0.0, 2e-8, -1e-8, 4e-8], dtype=torch.float64)
# Half-way between two multiples of 2^-16, where rounding to one of them would part what is equal.
BOUNDARY = 1 + 2.0**-17
KL_PENALTY = ("kl", {"temperature": 1.0})
ORDERED = [("wasserstein", {"radius": 0.1}), ("wasserstein_discrete", {"radius": 0.1}), ("cvar", {"level": 0.3})]


SCALE_FREE = [("kl", {"radius": 0.1}), ("kl", {"radius": 2.0}), ("chi2", {}), ("chi2", {"radius": 5.0})]


@pytest.mark.parametrize("size", [0.0, 1e-8, 1e-7, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "options"), [*SCALE_FREE, ("cvar", {"level": 0.3}), ("dr_dpo", {}), KL_PENALTY])
def test_margins_of_rounding_errors_weigh_nothing(name, options, dtype, size):
    margins = torch.randn(64, generator=torch.Generator().manual_seed(3), dtype=torch.float64).clamp(-1, 1) * size
    for loss in (-torch.nn.functional.logsigmoid(margins), (margins - 5) ** 2, BOUNDARY - margins):
        stats = stats_of(margins.sigmoid(), losses=loss.to(dtype), dtype=dtype)
        weights = CATALOG.build("reweighter", name, options).weights(stats)
        torch.testing.assert_close(weights, torch.ones_like(weights), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("name", "options"), SCALE_FREE)
def test_pairs_that_differ_are_weighed_whatever_the_scale_of_their_differences(name, options):
    margins = torch.linspace(-1, 1, 9, dtype=torch.float64)
    near, far = (
        CATALOG.build("reweighter", name, options).weights(stats_of((m).sigmoid())) for m in (margins / 100, margins)
    )
    assert near[0] > 1.2 > 1 > near[-1]
    assert far[0] > 1.2 > 1 > far[-1]


@pytest.mark.parametrize(("name", "options"), ORDERED)
def test_equal_pairs_weigh_the_same_whatever_their_rounding_errors(name, options):
    xi = 0.5 + NOISE
    weights = CATALOG.build("reweighter", name, options).weights(stats_of(xi))
    torch.testing.assert_close(weights, weights[:1].expand_as(weights), rtol=1e-6, atol=1e-6)


def test_equal_labels_flip_in_equal_shares_whatever_their_rounding_errors():
    smoother = CATALOG.build("smoother", "label_flip", {"radius": 0.25})
    logps = PairLogps(*(torch.zeros(8) for _ in range(4)))
    _, flip = smoother.flip_weights(0.7 + NOISE, PairBatch(logps, 0.0, 1))
    torch.testing.assert_close(flip, torch.full_like(flip, 0.25))


@pytest.mark.parametrize("noise", [NOISE.abs() + 1e-8, -NOISE.abs() - 1e-8, NOISE, 10 * NOISE, torch.zeros(8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_undecided_labels_do_not_flip_whatever_the_sign_of_their_rounding_errors(noise, dtype):
    smoother = CATALOG.build("smoother", "label_flip", {"radius": 0.25})
    batch = PairBatch(PairLogps(*(torch.zeros(8) for _ in range(4))), 0.0, 1)
    _, flip = smoother.flip_weights((0.5 + noise).to(dtype), batch)
    assert flip.tolist() == [0.0] * 8
    # A decided pair among them takes all of its budget and nothing else does.
    _, flip = smoother.flip_weights(torch.cat((0.5 + noise[:7], torch.tensor([0.6]))).to(dtype), batch)
    assert flip.tolist() == [0.0] * 7 + [1.0]
    # As soon as all are a little decided they share.
    _, flip = smoother.flip_weights((0.5 + 2.0**-15 + noise).to(dtype), batch)
    torch.testing.assert_close(flip, torch.full_like(flip, 0.25))


def test_values_apart_are_left_alone_and_ties_get_their_mean():
    values = torch.tensor([0.3, 0.1, 0.3 + 4e-7, 0.1 + 1e-3, float("nan")], dtype=torch.float64)
    found = steady(values)
    assert found[1] == 0.1
    assert found[3] == 0.1 + 1e-3
    assert found[0] == found[2] == pytest.approx(0.3 + 2e-7, abs=1e-15)
    assert found[4].isnan()
    assert steady(torch.tensor([0.25])).tolist() == [0.25]
    assert torch.equal(steady(values[:4].flip(0)), found[:4].flip(0))
    together = BOUNDARY + NOISE
    assert steady(together).unique().tolist() == [together.mean().item()]

"""Rounding errors never decide which pair is worse: values that agree up to them are ties."""

import pytest
import torch
from dro_batches import stats_of

from sera_core.catalog import load_catalog
from sera_core.records import PairBatch, PairLogps
from sera_plugin_dro.arrays import steady

CATALOG = load_catalog()
NOISE = torch.tensor([3e-8, -2e-8, 1e-8, -4e-8, 0.0, 2e-8, -1e-8, 4e-8], dtype=torch.float64)
ORDERED = [("wasserstein", {"radius": 0.1}), ("wasserstein_discrete", {"radius": 0.1}), ("cvar", {"level": 0.3})]


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


def test_values_apart_are_left_alone_and_ties_get_their_mean():
    values = torch.tensor([0.3, 0.1, 0.3 + 4e-7, 0.1 + 1e-3, float("nan")], dtype=torch.float64)
    found = steady(values)
    assert found[1] == 0.1
    assert found[3] == 0.1 + 1e-3
    assert found[0] == found[2] == pytest.approx(0.3 + 2e-7, abs=1e-15)
    assert found[4].isnan()
    assert steady(torch.tensor([0.25])).tolist() == [0.25]
    assert torch.equal(steady(values[:4].flip(0)), found[:4].flip(0))

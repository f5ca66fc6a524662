"""RowSampler and the nucleus: hand-worked sets, the full sort as oracle, sampled frequencies."""

import pytest
import torch
from scipy import stats

from sera_core.errors import ModelError
from sera_core.models.generate import sampling
from sera_core.models.generate.sampling import RowSampler, nucleus
from sera_core.models.generate.seeds import row_seed


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.4, [1]),
        (0.5, [1]),
        (0.51, [1, 3]),
        (0.8, [1, 3]),
        (0.82, [1, 2, 3]),
        (0.97, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_nucleus_by_hand(top_p, kept):
    logits = torch.tensor([[0.0625, 0.5, 0.125, 0.3125]]).log()
    assert nucleus(logits, top_p).nonzero()[:, 1].tolist() == kept


def test_ties_are_kept_together():
    assert nucleus(torch.zeros(1, 4), 0.3).all()


@pytest.mark.parametrize("top_p", [0.1, 0.7, 0.95, 0.999])
def test_shortlist_equals_full_sort(top_p, monkeypatch):
    torch.manual_seed(0)
    logits = torch.randn(6, 400) * torch.tensor([0.01, 0.5, 1, 2, 4, 8])[:, None]
    full = nucleus(logits, top_p)
    monkeypatch.setattr(sampling, "_SHORTLIST", 8)
    assert torch.equal(nucleus(logits, top_p), full)
    mass = (logits.softmax(1) * full).sum(1)
    assert (mass >= top_p - 1e-5).all()


def draw(logits, n, step=0, **options):
    seeds = torch.tensor([row_seed(0, 0, "t", str(i), 0) for i in range(n)])
    sampler = RowSampler(seeds, 3, **{"temperature": 1.0, "top_p": 1.0, **options})
    return sampler(torch.zeros(n, 3 + step, dtype=torch.int64), logits.expand(n, -1)).argmax(1)


def test_frequencies_follow_tempered_nucleus_without_banned_ids():
    logits = torch.tensor([1.0, 0.5, 3.0, 0.0, -0.5, -4.0])
    options = {"temperature": 0.7, "top_p": 0.9, "banned": (2,)}
    tempered = (logits / 0.7).index_fill(0, torch.tensor([2]), -torch.inf)
    probabilities = (tempered.softmax(0) * nucleus(tempered[None], 0.9)[0]).double()
    expected = probabilities / probabilities.sum()
    kept = expected > 0
    assert kept.tolist() == [True, True, False, True, False, False]
    for step in (0, 7):
        counts = torch.bincount(draw(logits, 20_000, step, **options), minlength=6)
        assert counts[~kept].sum() == 0
        assert stats.chisquare(counts[kept].numpy(), (expected[kept] * 20_000).numpy()).pvalue > 1e-3


def test_a_row_does_not_see_its_neighbours():
    torch.manual_seed(0)
    logits, ids = torch.randn(8, 50), torch.zeros(8, 4, dtype=torch.int64)
    seeds = torch.arange(8) * 999
    together = RowSampler(seeds, 3, temperature=1.0, top_p=0.9)(ids, logits)
    for i in range(8):
        alone = RowSampler(seeds[i : i + 1], 3, temperature=1.0, top_p=0.9)(ids[:1], logits[i : i + 1])
        assert torch.equal(alone[0], together[i])


def test_temperature_zero_is_greedy_and_respects_bans():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    assert draw(logits, 4, temperature=0.0).tolist() == [1] * 4
    assert draw(logits, 4, temperature=0.0, banned=(1,)).tolist() == [2] * 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_are_an_error(temperature):
    with pytest.raises(ModelError, match="no finite token logit"):
        draw(torch.full((1, 3), torch.nan), 2, temperature=temperature)

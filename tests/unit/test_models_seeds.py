"""Row seeds and counter-based noise: exact values, distribution, independence."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sera_core.models.generate.seeds import gumbel_noise, row_seed

MASK = (1 << 64) - 1


def mix(value):
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def noise_in_plain_integers(seed, step, token):
    stream = mix((seed + (step + 1) * 0xD1B54A32D192ED03) & MASK)
    bits = mix((stream + (token + 1) * 0x9E3779B97F4A7C15) & MASK)
    return -math.log(-math.log(((bits >> 12) + 0.5) / 2**52))


def test_mix_is_splitmix64():
    """First outputs of SplitMix64 seeded with 0, as published with the reference implementation."""
    assert [mix(n * 0x9E3779B97F4A7C15 & MASK) for n in (1, 2, 3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("step", [0, 1, 255, 100_000])
def test_tensor_arithmetic_equals_unsigned_integers(seed, step):
    tokens = torch.tensor([0, 1, 74, 49_151, 262_143])
    ours = gumbel_noise(torch.full((5,), seed), step, tokens)
    assert ours.dtype == torch.float64
    expected = [noise_in_plain_integers(seed & MASK, step, int(token)) for token in tokens]
    assert ours.tolist() == pytest.approx(expected, rel=1e-12)


def seeds(n):
    return torch.tensor([row_seed(0, 1, "test", str(i), 0) for i in range(n)])


def test_noise_is_standard_gumbel_and_finite():
    noise = gumbel_noise(seeds(200).repeat_interleave(500), 3, torch.arange(500).repeat(200))
    assert noise.isfinite().all()
    assert stats.kstest(noise.numpy(), stats.gumbel_r.cdf).pvalue > 1e-3


def test_argmax_samples_from_the_softmax():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0], dtype=torch.float64)
    rows = seeds(20_000)
    expected = logits.softmax(0).numpy() * len(rows)
    for step in (0, 1, 50):
        noise = gumbel_noise(rows.repeat_interleave(5), step, torch.arange(5).repeat(len(rows))).view(-1, 5)
        counts = torch.bincount((logits + noise).argmax(1), minlength=5).numpy()
        assert stats.chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize("pairing", ["steps", "rows", "tokens", "samples"])
def test_draws_are_independent(pairing):
    rows, token = seeds(5000), torch.zeros(5000, dtype=torch.int64)
    other = {
        "steps": lambda: gumbel_noise(rows, 1, token),
        "rows": lambda: gumbel_noise(rows.roll(1), 0, token),
        "tokens": lambda: gumbel_noise(rows, 0, token + 1),
        "samples": lambda: gumbel_noise(
            torch.tensor([row_seed(0, 1, "test", str(i), 1) for i in range(5000)]), 0, token
        ),
    }[pairing]()
    assert stats.spearmanr(gumbel_noise(rows, 0, token), other).pvalue > 1e-3


def test_row_seed_depends_on_every_part_and_nothing_else():
    base = (3, 1, "train", "p1", 2)
    others = [(4, 1, "train", "p1", 2), (3, 2, "train", "p1", 2), (3, 1, "eval", "p1", 2), (3, 1, "train", "p12", 2)]
    values = [row_seed(*part) for part in (base, *others, (3, 1, "train", "p1", 3), (3, 1, "train", "p", 12))]
    assert len(set(values)) == len(values)
    assert row_seed(*base) == 3661122720756017440
    assert all(-(2**63) <= value < 2**63 for value in values)
    assert np.int64(values[0]) == values[0]


@pytest.mark.gpu
def test_noise_is_the_same_on_a_gpu():
    rows, tokens = seeds(1000), torch.arange(1000)
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    there = gumbel_noise(rows.cuda(), 3, tokens.cuda()).cpu()
    torch.testing.assert_close(there, gumbel_noise(rows, 3, tokens), rtol=1e-12, atol=1e-12)

import math

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from sera_solvers import InputError, bootstrap_radius

SAMPLE = np.random.default_rng(0).uniform(0.0, 1.0, 40)


def test_distances_are_those_of_resamples():
    ranked = np.sort(SAMPLE)
    generator = np.random.default_rng(7)
    resamples = [ranked[generator.integers(40, size=40)] for _ in range(50)]
    distances = [wasserstein_distance(resample, SAMPLE) for resample in resamples]
    for confidence in (0.0, 0.5, 0.95, 1.0):
        got = bootstrap_radius(SAMPLE, confidence, replicates=50, seed=7)
        assert got == pytest.approx(np.quantile(distances, confidence), rel=1e-12)


def test_two_atoms_by_hand():
    # A resample of {0, 1} is the sample itself (distance 0) or one atom twice (distance 1/2).
    assert bootstrap_radius([0.0, 1.0], 1.0) == 0.5
    assert bootstrap_radius([0.0, 1.0], 0.0) == 0.0


def test_order_does_not_matter_and_the_seed_does():
    radius = bootstrap_radius(SAMPLE, 0.9)
    assert isinstance(radius, float)
    assert bootstrap_radius(SAMPLE[::-1], 0.9) == radius
    assert bootstrap_radius(SAMPLE, 0.9, seed=1) != radius


def test_scales_with_the_sample_and_shrinks_with_its_size():
    assert bootstrap_radius(3 * SAMPLE + 1, 0.9) == pytest.approx(3 * bootstrap_radius(SAMPLE, 0.9), rel=1e-12)
    large = np.random.default_rng(0).uniform(0.0, 1.0, 4000)
    assert bootstrap_radius(large, 0.9) == pytest.approx(bootstrap_radius(SAMPLE, 0.9) / 10, rel=0.3)


@pytest.mark.parametrize("xi", [[0.3], [0.3, 0.3, 0.3]])
def test_nothing_to_resample(xi):
    assert bootstrap_radius(xi, 0.9) == 0


def test_tensors():
    got = bootstrap_radius(torch.tensor(SAMPLE), 0.9)
    assert got.dtype is torch.float64
    assert float(got) == pytest.approx(bootstrap_radius(SAMPLE, 0.9), rel=1e-12)
    assert bootstrap_radius(torch.empty(40, device="meta"), 0.9).device.type == "meta"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"xi": [0.1, math.nan]}, "xi: expected finite values, got nan at index 1"),
        ({"xi": []}, "xi: expected a 1-D array"),
        ({"confidence": 1.1}, r"confidence: expected a number in \[0, 1\], got 1.1"),
        ({"confidence": math.nan}, "confidence: "),
        ({"confidence": "high"}, "confidence: "),
        ({"replicates": 0}, "replicates: expected an integer >= 1, got 0"),
        ({"seed": -1}, "seed: expected an integer >= 0, got -1"),
    ],
)
def test_bad_input_names_the_argument(changed, message):
    with pytest.raises(InputError, match=f"^{message}"):
        bootstrap_radius(**({"xi": [0.1, 0.2], "confidence": 0.9} | changed))

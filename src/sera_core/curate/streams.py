"""Named random streams: the same (seed, iteration, purpose) gives the same draws, whatever else is drawn."""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, iteration: int, purpose: str) -> np.random.Generator:
    """A generator of its own for one purpose of one iteration."""
    return np.random.default_rng([seed, iteration, zlib.crc32(purpose.encode())])

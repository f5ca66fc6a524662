"""The world's constants, vocabulary and named random streams. Changing any of them means a new `VERSION`."""

from __future__ import annotations

import zlib

import numpy as np

from sera_core.errors import ConfigError

VERSION = 1

PAD, BOS, SEP, EOS = "<pad>", "<bos>", "<sep>", "<eos>"
QUALITY = "qhi"
MODES = ("mode0", "mode1")
FILLERS = ("um0", "um1", "um2", "um3")
N_KEYS, N_VARIANTS, N_GROUPS = 16, 3, 4
KEYS = tuple(f"k{key}" for key in range(N_KEYS))
CHOICES = tuple(tuple(f"v{key}_{variant}" for variant in range(N_VARIANTS)) for key in range(N_KEYS))
SPECIALS = (PAD, BOS, SEP, EOS)
VOCABULARY = (*SPECIALS, QUALITY, *MODES, *FILLERS, *KEYS, *(value for row in CHOICES for value in row))

MIN_TOPICS, MAX_TOPICS = 3, 6
MAX_PROMPT_TOKENS, MAX_RESPONSE_TOKENS = 16, 16

DEMOS = 24_576
PROBE = 768


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The generator of one purpose under one seed; streams of different purposes never shift each other.

    Raises:
        ConfigError: `seed` is negative.
    """
    if seed < 0:
        raise ConfigError(f"seed must be 0 or more, got {seed}; choose a non-negative seed.")
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])

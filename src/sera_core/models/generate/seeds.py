"""Randomness that belongs to a row, not to a batch: seeds per sample and counter-based Gumbel noise."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_STEP = 0xD1B54A32D192ED03 - (1 << 64)
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def row_seed(seed: int, iteration: int, purpose: str, prompt_id: str, sample: int) -> int:
    """A signed 64-bit seed for sample `sample` of one prompt; the same in every process and on every machine."""
    text = "\0".join((str(seed), str(iteration), purpose, str(sample), prompt_id))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def gumbel_noise(seeds: Tensor, step: int, tokens: Tensor) -> Tensor:
    """Standard Gumbel noise, float64 [n], for `tokens` int64 [n] drawn at `step` >= 0 by rows seeded int64 [n].

    A pure function of (seed, step, token): the token-th number of a SplitMix64 stream whose start mixes seed and
    step, mapped to (0, 1) and through -log(-log u). Adding it to log-probabilities and taking the largest samples
    from them.

    Source: Steele, Lea and Flood 2014 (SplitMix64); Maddison, Tarlow and Minka 2014, Section 2 (Gumbel-max).
    """
    stream = _mix(seeds + _wrap((step + 1) * _STEP))
    bits = _mix(stream + (tokens + 1) * _GOLDEN)
    # 52 bits and a half: never 0 or 1, and exact in float64.
    uniform = (_logical_shift(bits, 12).double() + 0.5) * 2.0**-52
    return -torch.log(-torch.log(uniform))


def _mix(value: Tensor) -> Tensor:
    """The SplitMix64 finaliser, int64 standing for uint64: products wrap."""
    value = (value ^ _logical_shift(value, 30)) * _MIX_1
    value = (value ^ _logical_shift(value, 27)) * _MIX_2
    return value ^ _logical_shift(value, 31)


def _logical_shift(value: Tensor, bits: int) -> Tensor:
    """Right shift that fills with zeros; torch's own copies the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _wrap(value: int) -> int:
    """A Python integer reduced to signed 64 bits, as tensor arithmetic would."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)

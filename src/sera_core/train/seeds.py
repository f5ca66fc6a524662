"""Seeds of training: another one for every iteration of a run."""

from __future__ import annotations

import hashlib


def training_seed(seed: int, iteration: int) -> int:
    """A seed in [0, 2^31) that depends on both numbers; the same in every process and on every machine."""
    digest = hashlib.blake2b(f"{seed}\0{iteration}\0train".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1

"""What the benchmarks of log-probs share: batches of real preference pairs, and a heap that keeps its memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from sera_core.data.preferences import Preferences
from sera_core.data.tokens import TokenLimits, tokenize_pairs
from sera_core.models.batches import Group
from sera_core.models.packed import packed_batches
from sera_core.records import Pair

DATA = Path(os.environ.get("SERA_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
# glibc gives freed memory back and faults it in anew, which costs as much as the work itself on some machines.
_KEPT_HEAP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}


def data_folder(name: str) -> Path:
    """A folder or file of pairs: as it is, or inside `DATA`."""
    found = next((path for path in (Path(name), DATA / name) if path.exists()), None)
    if found is None:
        raise SystemExit(f"There is no {name}, here or in {DATA}. SERA_TEST_DATA names the folder of the data sets.")
    return found


def keep_heap() -> None:
    """Start this process again with a heap that keeps what it once had, so that no way pays for another's memory."""
    if sys.platform == "linux" and any(os.environ.get(name) != value for name, value in _KEPT_HEAP.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_KEPT_HEAP})  # noqa: S606  # itself


def real_pairs(
    tokenizer: PreTrainedTokenizerBase, data: Path, longest: int, pairing: str | None = None
) -> tuple[Pair, ...]:
    """All pairs of a data set that need no cutting: prompt and longer response have at most `longest` tokens.

    `pairing` says how several scored responses to a prompt become pairs.
    """
    options: dict[str, Any] = {} if pairing is None else {"pairing": pairing}
    source = Preferences(path=str(data), **options).load(0)
    pairs = tokenize_pairs(tokenizer, source.pairs, TokenLimits(longest, longest, "drop"), source.name).pairs
    return tuple(pair for pair in pairs if _tokens(pair)[0] <= longest)


def batches(pairs: tuple[Pair, ...], size: int, count: int, seed: int = 0) -> list[list[Pair]]:
    """`count` batches of different random pairs."""
    order = np.random.default_rng(seed).permutation(len(pairs))[: size * count]
    if len(order) < size * count:
        raise SystemExit(f"{count} batches of {size} pairs were asked for; the data has {len(pairs)} pairs.")
    return [[pairs[i] for i in order[start : start + size]] for start in range(0, len(order), size)]


def rotated(ways: list[str], number: int) -> list[str]:
    """The ways, beginning with another one each time."""
    start = number % len(ways)
    return [*ways[start:], *ways[:start]]


def token_counts(batch: list[Pair], budget: int) -> dict[str, int]:
    """Tokens of a batch padded to its longest sequence, without padding, with every prompt once, and in Sera's packs.

    Packs leave out the last token of each response, and hold what opens their prompts once.
    """
    groups = [Group(pair.prompt.ids, (pair.chosen.ids, pair.rejected.ids)) for pair in batch]
    packed = sum(pack.ids.numel() for pack in packed_batches(groups, budget, torch.device("cpu")))
    apart = [len(pair.prompt.ids) + len(side.ids) for pair in batch for side in (pair.chosen, pair.rejected)]
    shared = sum(len(pair.prompt.ids) + len(pair.chosen.ids) + len(pair.rejected.ids) for pair in batch)
    return {"padded": len(apart) * max(apart), "unpadded": sum(apart), "shared": shared, "packed": packed}


def _tokens(pair: Pair) -> tuple[int, int]:
    """Longest sequence and all tokens of a pair."""
    sides = [len(pair.prompt.ids) + len(side.ids) for side in (pair.chosen, pair.rejected)]
    return max(sides), sum(sides)

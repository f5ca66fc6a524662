"""Selecting pairs by margin, and putting an iteration's training set together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sera_core.errors import ConfigError, DataError
from sera_core.protocols import Selector, SelectsByPrompt
from sera_core.records import Floats, Pair, Pairs


def select(
    selector: Selector, margins: Floats, pool: int, rng: np.random.Generator, prompts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Indices of the kept pairs, sorted; `prompts` int64 [n] numbers the prompt of each pair.

    Raises:
        ConfigError: the selector returned indices that are out of range, repeated or unsorted.
    """
    if isinstance(selector, SelectsByPrompt):
        kept = np.asarray(selector.select_by_prompt(margins, prompts, pool, rng), dtype=np.int64)
    else:
        kept = np.asarray(selector.select(margins, pool, rng), dtype=np.int64)
    in_range = kept.size == 0 or (kept[0] >= 0 and kept[-1] < len(margins))
    if kept.ndim != 1 or not in_range or (np.diff(kept) <= 0).any():
        raise ConfigError(
            f"Selector {type(selector).__name__} returned indices that are not sorted, unique and in range."
        )
    return kept


def prompt_numbers(pairs: Sequence[Pair]) -> NDArray[np.int64]:
    """The number of each pair's prompt, int64 [n], prompts counted in the order they first occur."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(pair.prompt.id, len(numbers)) for pair in pairs], dtype=np.int64)


def keep(pairs: Pairs, kept: NDArray[np.int64]) -> Pairs:
    """The kept pairs; what was dropped earlier stays counted, what the selector left out is not a drop."""
    return Pairs(tuple(pairs.pairs[index] for index in kept), pairs.dropped)


def mix(parts: Mapping[str, Pairs]) -> Pairs:
    """One training set from several sources, in order; drops are counted per source and reason.

    Raises:
        DataError: nothing is left to train on.
    """
    merged = tuple(pair for part in parts.values() for pair in part.pairs)
    dropped = {
        f"{name}.{reason}": count for name, part in parts.items() for reason, count in sorted(part.dropped.items())
    }
    if not merged:
        raise DataError(
            "No pair is left to train on. Dropped: "
            + (", ".join(f"{reason} {count}" for reason, count in dropped.items()) or "none; the selector kept nothing")
            + ". Loosen the selector, or look at the data."
        )
    return Pairs(merged, dropped)

"""Label noise: which pairs have chosen and rejected swapped, by a seeded rate or by a list of ids."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path

from sera_core.errors import ConfigError, DataError
from sera_core.records import TextPair


def uniform(seed: int, *names: str) -> float:
    """A number in [0, 1) that depends on `seed` and `names` alone: the same in any order, on any machine."""
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


def check_noise(noise: float | str) -> None:
    """ConfigError unless `noise` is a rate in [0, 0.5) or the path of a file."""
    if isinstance(noise, str):
        if not Path(noise).expanduser().is_file():
            raise ConfigError(f"source.noise names the file '{noise}', which does not exist. Give a file or a rate.")
    elif not (math.isfinite(noise) and 0 <= noise < 0.5):
        raise ConfigError(f"source.noise must be a rate in [0, 0.5) or a file with flip_ids, not {noise}.")


def flip_by_rate(pairs: Sequence[TextPair], rate: float, seed: int) -> tuple[TextPair, ...]:
    """Pairs with about the share `rate` in [0, 0.5) flipped; rate 0 returns them as they are, `flipped` unknown.

    One uniform number per pair id decides, so a smaller rate flips a subset of what a larger one flips.
    """
    if rate == 0:
        return tuple(pairs)
    return tuple(_flip(pair, uniform(seed, "flip", pair.id) < rate) for pair in pairs)


def read_flip_ids(path: str) -> frozenset[str]:
    """The ids under ``flip_ids`` in a JSON file, or a JSON list of ids.

    Raises:
        DataError: the file is not of that form.
    """
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"The flip list {path} cannot be read: {error}. Expected JSON with `flip_ids`.") from error
    ids = content.get("flip_ids") if isinstance(content, dict) else content
    if not isinstance(ids, list):
        raise DataError(
            f'The flip list {path} has no list `flip_ids`. Expected {{"flip_ids": [...]}} or a list of ids.'
        )
    return frozenset(map(str, ids))


def flip_by_ids(pairs: Sequence[TextPair], ids: Collection[str]) -> tuple[TextPair, ...]:
    """Pairs with those named in `ids` flipped, and `flipped` known for all."""
    return tuple(_flip(pair, pair.id in ids) for pair in pairs)


def _flip(pair: TextPair, flip: bool) -> TextPair:
    if not flip:
        return dataclasses.replace(pair, flipped=False)
    return dataclasses.replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        chosen_score=pair.rejected_score,
        rejected_score=pair.chosen_score,
        flipped=True,
    )

"""What models answered, on disk: replies and rewards, written once per (asked how, question), read by every run."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sera_core.errors import StoreError

_LOG = logging.getLogger(__name__)


class AnswerStore:
    """JSON values by (folder name, key), in append-only shards under ``root/<name>/``.

    Every `put` adds one checksummed shard through a temporary name, so that a reader sees all of it or nothing and any
    number of processes may read and write at once. A damaged shard is moved aside to ``*.corrupt`` and its entries
    count as missing.
    """

    def __init__(self, root: Path) -> None:
        """`root` is created by the first `put`."""
        self.root = Path(root)

    def get(self, name: str) -> dict[str, Any]:
        """Everything known under a name, by key. Of several values for a key the first shard by name wins."""
        known: dict[str, Any] = {}
        for path in sorted((self.root / name).glob("*.json")):
            for key, value in _read(path).items():
                known.setdefault(key, value)
        return known

    def put(self, name: str, values: Mapping[str, Any]) -> None:
        """Add values by key.

        Raises:
            StoreError: the disk refuses; then nothing is stored.
        """
        folder = self.root / name
        content = json.dumps(dict(values), sort_keys=True)
        digest = _digest(content)
        shard = folder / f"{digest[:24]}-{uuid.uuid4().hex[:8]}.json"
        temporary = shard.with_name(f".{shard.name}.tmp")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("w", encoding="utf-8") as file:
                file.write(f"{digest}\n{content}")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(shard)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise StoreError(
                f"Cannot store {len(values)} answers in {folder}: {error.strerror or error}. Free space there or point "
                "the cache elsewhere, then run again; what was stored before is kept."
            ) from error


def stored(
    store: AnswerStore,
    name: str,
    keys: Sequence[str],
    compute: Callable[[Sequence[str]], Mapping[str, Any]],
    chunk: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The values of `keys`: what is known is read, the rest computed in chunks, each kept as soon as it is done.

    `progress` is told (known, total) over distinct keys.

    Raises:
        StoreError: see `AnswerStore.put`.
    """
    distinct = dict.fromkeys(keys)
    known = {key: value for key, value in store.get(name).items() if key in distinct}
    missing = [key for key in distinct if key not in known]
    for start in range(0, len(missing), chunk):
        if progress is not None:
            progress(len(known), len(distinct))
        found = compute(missing[start : start + chunk])
        store.put(name, found)
        known |= found
    if progress is not None:
        progress(len(distinct), len(distinct))
    return known


def _digest(content: str) -> str:
    return hashlib.blake2b(content.encode(), digest_size=32).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    """Entries of a shard; none, after moving it aside, when it is damaged."""
    try:
        digest, _, content = path.read_text(encoding="utf-8").partition("\n")
    except FileNotFoundError:
        return {}  # another process moved it aside
    except UnicodeDecodeError:
        digest, content = "", "damaged"
    except OSError as error:
        raise StoreError(f"Cannot read the stored answers {path}: {error.strerror or error}.") from error
    if digest == _digest(content):
        values: dict[str, Any] = json.loads(content)
        return values
    _LOG.warning("Stored answers %s are damaged; moved aside, they are asked for again.", path)
    try:
        path.replace(path.with_name(path.name + ".corrupt"))
    except OSError as error:
        _LOG.warning("Cannot move %s aside: %s", path, error)
    return {}

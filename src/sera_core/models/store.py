"""Log-probabilities on disk: written once per (scorer, template, token ids), read by every stage and every run."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import struct
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sera_core.errors import StoreError
from sera_core.records import Ids

_LOG = logging.getLogger(__name__)
_MAGIC = b"SERALOGP"
_VERSION = 1
_HEADER = struct.Struct("<8sIQ")
_DIGEST = 32
_ENTRY = np.dtype([("key", "V16"), ("sum", "<f4"), ("length", "<i4")])

Entry = tuple[float, int]


def response_key(template: str, prompt_ids: Ids, response_ids: Ids) -> bytes:
    """16 bytes that identify a response in its context: blake2b over template hash, both lengths and all ids."""
    digest = hashlib.blake2b(digest_size=16)
    name = template.encode()
    digest.update(struct.pack("<QQQ", len(name), len(prompt_ids), len(response_ids)))
    digest.update(name)
    for ids in (prompt_ids, response_ids):
        digest.update(np.ascontiguousarray(ids, dtype="<i4").tobytes())
    return digest.digest()


class LogProbStore:
    """Sums and lengths by (scorer hash, `response_key`), in append-only shards under ``root/<scorer>/``.

    Every `put` adds one checksummed shard through a temporary name, so that a reader sees all of it or nothing and
    any number of processes may read and write at once. A damaged shard is moved aside to ``*.corrupt`` and its
    entries count as missing. What one key was first stored with stays, whatever is put later. `hits` and `misses`
    count the keys asked for by `get`.
    """

    def __init__(self, root: Path) -> None:
        """`root` is created by the first `put`."""
        self.root = Path(root)
        self.hits = 0
        self.misses = 0
        self._entries: dict[str, dict[bytes, Entry]] = {}
        self._seen: dict[str, set[str]] = {}

    def get(
        self, scorer: str, keys: Sequence[bytes]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.bool_]]:
        """Sums float32 [n] (nan where missing), lengths int32 [n] (0 where missing) and found bool [n].

        Raises:
            StoreError: `scorer` cannot name a folder, or a shard cannot be opened.
        """
        entries = self._refresh(scorer)
        values = [entries.get(key) for key in keys]
        sums = np.array([np.nan if value is None else value[0] for value in values], dtype=np.float32)
        lengths = np.array([0 if value is None else value[1] for value in values], dtype=np.int32)
        found = np.array([value is not None for value in values], dtype=np.bool_)
        self.hits += int(found.sum())
        self.misses += int((~found).sum())
        return sums, lengths, found

    def put(
        self,
        scorer: str,
        keys: Sequence[bytes],
        sums: NDArray[np.float32],
        lengths: NDArray[np.int32],
    ) -> NDArray[np.float32]:
        """Store n entries: keys of 16 bytes, finite float32 sums [n], positive lengths [n].

        Returns the sums now stored for `keys`, float32 [n]: the given ones, or those another process stored first.

        Raises:
            StoreError: wrong shapes or values, or the disk refuses; then nothing is stored.
        """
        _check(keys, sums, lengths)
        entries = self._refresh(scorer)
        new: dict[bytes, Entry] = {}
        for key, total, length in zip(keys, sums, lengths, strict=True):
            if key not in entries:
                new.setdefault(bytes(key), (float(total), int(length)))
        if new:
            name = _write(self._folder(scorer), new)
            entries.update(new)
            self._seen[scorer].add(name)
        return np.array([entries[key][0] for key in keys], dtype=np.float32)

    def _folder(self, scorer: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", scorer):
            raise StoreError(
                f"Scorer {scorer!r} cannot name a folder of {self.root}; give a hash such as weights_hash."
            )
        return self.root / scorer

    def _refresh(self, scorer: str) -> dict[bytes, Entry]:
        """Entries of all shards written so far. The first shard by name wins a key."""
        folder = self._folder(scorer)
        entries = self._entries.setdefault(scorer, {})
        seen = self._seen.setdefault(scorer, set())
        for path in sorted(folder.glob("*.logps")):
            if path.name in seen:
                continue
            for key, value in _read(path).items():
                entries.setdefault(key, value)
            seen.add(path.name)
        return entries


def _check(keys: Sequence[bytes], sums: NDArray[np.float32], lengths: NDArray[np.int32]) -> None:
    if not len(keys) == len(sums) == len(lengths):
        raise StoreError(f"Got {len(keys)} keys, {len(sums)} sums and {len(lengths)} lengths; give one each per entry.")
    if any(len(key) != 16 for key in keys):
        raise StoreError("A key is not 16 bytes long; make keys with response_key.")
    if not np.isfinite(sums).all() or (np.asarray(lengths) <= 0).any():
        raise StoreError("A sum is not finite or a length is not positive; only real log-probabilities are stored.")


def _write(folder: Path, entries: dict[bytes, Entry]) -> str:
    """One new shard. Its name holds a part of its own, so that no two writers meet, on whatever machines they are."""
    rows = np.array([(key, *value) for key, value in entries.items()], dtype=_ENTRY)
    content = _HEADER.pack(_MAGIC, _VERSION, len(rows)) + rows.tobytes()
    digest = hashlib.blake2b(content, digest_size=_DIGEST).digest()
    name = f"{digest.hex()[:24]}-{uuid.uuid4().hex[:8]}.logps"
    temporary = folder / f".{name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content + digest)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / name)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise StoreError(
            f"Cannot store {len(content) + _DIGEST} bytes of log-probabilities in {folder}: "
            f"{error.strerror or error}. Free space there or "
            "point the cache elsewhere, then run again; what was stored before is kept."
        ) from error
    return name


def _read(path: Path) -> dict[bytes, Entry]:
    """Entries of a shard; none, after moving it aside, when it is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}  # another process moved it aside
    except OSError as error:
        raise StoreError(f"Cannot read the log-probability shard {path}: {error.strerror or error}.") from error
    problem = _problem(data)
    if problem:
        _LOG.warning(
            "Log-probability shard %s is damaged (%s); moved aside, its entries are recomputed.", path, problem
        )
        _set_aside(path)
        return {}
    rows = np.frombuffer(data[_HEADER.size : -_DIGEST], dtype=_ENTRY)
    pairs = zip(rows["sum"].tolist(), rows["length"].tolist(), strict=True)
    return dict(zip([key.tobytes() for key in rows["key"]], pairs, strict=True))


def _problem(data: bytes) -> str:
    """What is wrong with a shard's bytes, or an empty string."""
    if len(data) < _HEADER.size + _DIGEST:
        return "truncated"
    content, digest = data[:-_DIGEST], data[-_DIGEST:]
    if hashlib.blake2b(content, digest_size=_DIGEST).digest() != digest:
        return "checksum differs"
    magic, version, count = _HEADER.unpack_from(content)
    if magic != _MAGIC or version != _VERSION:
        return f"format {magic!r} version {version}, expected {_MAGIC!r} version {_VERSION}"
    return "" if len(content) == _HEADER.size + count * _ENTRY.itemsize else "wrong size"


def _set_aside(path: Path) -> None:
    try:
        path.replace(path.with_name(path.name + ".corrupt"))
    except OSError as error:
        _LOG.warning("Cannot move %s aside: %s", path, error)

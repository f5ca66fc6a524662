"""Stages on disk: each result is written under a temporary name, renamed when complete, and shared through a cache."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from sera_core import __version__
from sera_core.errors import StoreError
from sera_core.meter import Meter
from sera_core.ranks import Ranks

_RECORD = "stage.json"
_FORMAT = 2
# Locks by stage, below the cache; the operating system releases those of a process that dies.
CLAIMS = "claims"


@dataclass(frozen=True, slots=True)
class Stage:
    """A finished stage: where its files are, its key, how long it took when it was computed, whether it was reused.

    `work` says what its log-probabilities cost when it was computed (see `Meter.record`).
    """

    name: str
    path: Path
    key: str
    seconds: float
    reused: bool
    work: Mapping[str, Any]


def digest(value: object) -> str:
    """A hash of any JSON-able value: 32 hex digits, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write JSON to a temporary name, then rename, so that a reader never sees half a file."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path) -> Any:  # noqa: ANN401
    """The value in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def default_cache() -> Path:
    """SERA_CACHE, or the user's cache folder."""
    return Path(os.environ.get("SERA_CACHE") or platformdirs.user_cache_dir("sera"))


@contextmanager
def disk_refusals(what: str, where: Path) -> Iterator[None]:
    """Inside, a disk that takes no more files is a StoreError with a remedy; `what` could not be written to `where`."""
    try:
        yield
    except OSError as error:
        # Any other operating-system error is a bug to be seen whole.
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS}:
            raise StoreError(
                f"{what} could not be written to {where}: {error.strerror}. Free some space or choose "
                "another --out and --cache, then run the same command again: finished work is kept."
            ) from error
        raise


class Workspace:
    """The folder of one run and the cache it shares with others.

    A stage's key is the hash of its name, the package version and its inputs. A finished stage with the same key is
    reused from the run's folder, then from the cache; files are compared with their recorded checksums first, and a
    damaged copy is computed again. An interrupted stage starts afresh, unless it is `resumable`: a computation with
    checkpoints of its own (training) finds its folder ``<stage>.partial`` as it left it. Of runs that share a cache and
    want the same stage at once, one computes it; the others wait, then reuse it.

    Of several ranks, the first holds the lock, decides what is reused and computes; the others wait and read.
    """

    def __init__(self, out: Path, cache: Path, ranks: Ranks | None = None) -> None:
        """`ranks` are those that share the run; None for this process alone."""
        self.out, self.cache, self.ranks, self.meter = out, cache, ranks or Ranks(), Meter()
        try:
            out.mkdir(parents=True, exist_ok=True)
            cache.mkdir(parents=True, exist_ok=True)
            (cache / CLAIMS).mkdir(exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"Cannot create the folder {error.filename}: {error.strerror}. Choose another --out or --cache."
            ) from error
        self._lock = FileLock(out / ".lock")
        self._used: set[Path] = set()

    def __enter__(self) -> Workspace:
        self.ranks.on_main(self._acquire)
        if not (self.out / ".lock").exists():
            self._lock.release()
            raise StoreError(
                f"Rank {self.ranks.rank} does not see the files of rank 0 in {self.out}. Processes on several machines "
                "need --out and --cache on a file system they share."
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def stage(
        self,
        name: str,
        where: str,
        inputs: Mapping[str, Any],
        compute: Callable[[Path], None],
        *,
        resumable: bool = False,
        together: bool = False,
    ) -> Stage:
        """The stage's result, computed only if no valid one exists.

        Args:
            name: what kind of stage; part of the key.
            where: folder below the run, such as ``iter_1/train``; not part of the key.
            inputs: everything the result depends on, JSON-able.
            compute: writes all files of the stage into the folder it is given.
            resumable: `compute` itself cleans up and continues what it left in the folder when it was interrupted.
            together: all ranks call `compute`, in the same folder, and share the work; otherwise rank 0 alone does.

        Raises:
            StoreError: the disk is full or refuses the files. OtherRankError: `compute` failed on another rank.
        """
        key = digest({"stage": name, "format": _FORMAT, "version": __version__, "inputs": inputs})
        final, cached = self.out / where, self.cache / "stages" / f"{name}-{key}"
        self._used.add(final)
        partial = final.with_name(final.name + ".partial")

        def settle() -> Stage | None:
            found = _find(name, key, final, cached)
            if found is not None or not resumable:
                # What an interrupted attempt left would be recorded with the results.
                _remove(partial)
            alone = found is None and not together
            return _compute(Ranks(), self.meter, name, partial, cached, key, compute) if alone else found

        with FileLock(self.cache / CLAIMS / cached.name) if self.ranks.main else nullcontext():
            return self.ranks.on_main(settle) or _compute(self.ranks, self.meter, name, partial, cached, key, compute)

    def remove_strangers(self, pattern: str) -> None:
        """Delete stages below folders matching `pattern` that this process did not use; the cache still has them.

        An earlier run with other settings left them, and readers would take them for this run's.
        """
        for folder in sorted(self.out.glob(pattern)):
            for stage in (path for path in folder.iterdir() if path.is_dir() and path not in self._used):
                shutil.rmtree(stage)
            if not any(path in self._used for path in folder.iterdir()):
                shutil.rmtree(folder)

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise StoreError(
                f"Another process is running in {self.out}. Wait for it, or choose another --out."
            ) from error
        except OSError as error:
            raise StoreError(f"Cannot write to {self.out}: {error.strerror}. Choose another --out.") from error


def checksums(folder: Path) -> dict[str, str]:
    """blake2b of every file below a folder by relative path, except the stage's own bookkeeping."""
    return {
        path.relative_to(folder).as_posix(): _file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in {_RECORD, "key"}
    }


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _read(folder: Path, name: str, key: str) -> Stage | None:
    try:
        record = read_json(folder / _RECORD)
        valid = record["key"] == key and record["files"] == checksums(folder)
        return Stage(name, folder, key, float(record["seconds"]), True, record["work"]) if valid else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _find(name: str, key: str, final: Path, cached: Path) -> Stage | None:
    """A valid result in the run's folder, put there from the cache if need be."""
    found = _read(final, name, key)
    if found is None and (kept := _read(cached, name, key)) is not None:
        link_tree(cached, final)
        found = replace(kept, path=final)
    return found


def _compute(
    ranks: Ranks, meter: Meter, name: str, partial: Path, cached: Path, key: str, compute: Callable[[Path], None]
) -> Stage:
    """Compute a stage on all `ranks`; the first one prepares the folder, seals it and shares it."""
    final = partial.with_suffix("")

    def seal() -> Stage:
        seconds = spent + time.perf_counter() - began
        work = meter.since(before).record()
        record = {"stage": name, "key": key, "seconds": round(seconds, 3), "work": work, "files": checksums(partial)}
        write_json(partial / _RECORD, record)
        (partial / "key").unlink()
        _remove(final)
        partial.replace(final)
        _share(final, cached)
        return Stage(name, final, key, seconds, False, work)

    with disk_refusals(f"Stage {name}", partial):
        ranks.on_main(lambda: _prepare(partial, key))
        meter.begin()
        began, before = time.perf_counter(), meter.copy()
        spent = _spent(partial)
        compute(partial)
        ranks.wait()
        return ranks.on_main(seal)


def _prepare(partial: Path, key: str) -> None:
    """Keep an unfinished folder only if it belongs to the same key."""
    marker = partial / "key"
    if not (marker.is_file() and marker.read_text(encoding="utf-8") == key):
        _remove(partial)
        partial.mkdir(parents=True)
        marker.write_text(key, encoding="utf-8")


def _spent(partial: Path) -> float:
    """Seconds an interrupted attempt worked here: from its first file to its last."""
    times = [path.stat().st_mtime for path in partial.rglob("*") if path.is_file()]
    return max(times) - min(times) if times else 0.0


def _share(final: Path, cached: Path) -> None:
    """Put a finished stage into the cache; whoever comes second leaves the first one's copy in place."""
    temporary = cached.with_name(f"{cached.name}.{os.getpid()}")
    _remove(temporary)
    _link_tree(final, temporary)
    if _is_damaged(cached):
        _remove(cached)
    try:
        temporary.rename(cached)
    except OSError as error:
        if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
            raise
        _remove(temporary)


def _is_damaged(folder: Path) -> bool:
    try:
        record = read_json(folder / _RECORD)
        return bool(record["files"] != checksums(folder))
    except (OSError, ValueError, KeyError, TypeError):
        return folder.exists()


def link_tree(source: Path, target: Path) -> None:
    """Make `target` a copy of the folder `source` by hard links where possible, replacing what was there at once."""
    temporary = target.with_name(target.name + ".linking")
    _remove(temporary)
    _link_tree(source, temporary)
    _remove(target)
    temporary.replace(target)


def _link_tree(source: Path, target: Path) -> None:
    """Copy a folder by hard links; real copies where the file system has none or the two are on different disks."""
    shutil.copytree(source, target, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)

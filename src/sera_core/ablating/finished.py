"""Finished runs of an ablation, recognised without being opened.

Beside each run's folder ``seed-<n>`` lies ``seed-<n>.json``, written when the run has ended well: its result, the key
of everything that went in, and the size and time of every file it left. While all three hold, the run is not opened
again. A file that is gone, or was written to, is noticed by its size or time, and the run is then opened, which
compares every stage with its checksums and computes what is damaged. Damage that leaves size and time as they were is
only found by opening (`sera run`, or `sera ablate --verify`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from sera_core import __version__
from sera_core.ablating.jobs import Job, Result, from_plain, plain
from sera_core.workspace import digest, read_json, write_json

_FORMAT = 1
# Settings that no file can stand behind.
_TEXTS = frozenset({"description", "cites"})
# A folder of data or weights has far fewer; whoever names a whole disk shall not wait for it.
_MOST_FILES = 1000

Footprint = dict[str, list[int]]


def record_of(job: Job) -> Path:
    """Where a finished job's result is kept."""
    return job.out.with_name(f"{job.out.name}.json")


def job_key(job: Job, provenance: Mapping[str, str]) -> str:
    """A hash of what goes into a run: its settings, versions, and size and time of local files the settings name.

    `provenance` maps the components of its plan to where they came from, versions included.
    """
    settings = json.loads(json.dumps(job.settings, default=str))
    files = {name: _footprint(Path(name)) for name in sorted(set(_named_files(settings)))}
    inputs = {"settings": settings, "version": __version__, "components": dict(provenance), "files": files}
    return digest({"format": _FORMAT, **inputs})


def kept_result(job: Job, key: str) -> Result | None:
    """The result of a finished job if everything that went in and all its files are as they were, else None."""
    try:
        record = read_json(record_of(job))
        if record["key"] != key or record["files"] != _footprint(job.out):
            return None
        return from_plain({**record["result"], "arm": job.arm.name, "seed": job.seed, "out": str(job.out)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep_result(job: Job, key: str, result: Result) -> None:
    """Note that a job has ended well."""
    write_json(record_of(job), {"key": key, "files": _footprint(job.out), "result": plain(result)})


def _footprint(path: Path) -> Footprint:
    """[size in bytes, time of the last change in ns] of a file, or of every file below a folder by relative path."""
    if path.is_file():
        return {"": _state(path)}
    files = (file for file in path.rglob("*") if file.name != ".lock" and file.is_file())
    return {file.relative_to(path).as_posix(): _state(file) for file in sorted(islice(files, _MOST_FILES))}


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _named_files(value: Any) -> Iterator[str]:  # noqa: ANN401 (any JSON value)
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in _TEXTS:
                yield from _named_files(item)
    elif isinstance(value, list):
        for item in value:
            yield from _named_files(item)
    elif isinstance(value, str) and ("/" in value or "." in value) and _exists(value):
        yield value


def _exists(name: str) -> bool:
    try:
        return Path(name).name not in {"", ".", ".."} and Path(name).exists()
    except (OSError, ValueError):
        # Longer than a name may be, or not fit for one.
        return False

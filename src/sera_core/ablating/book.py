"""What an ablation writes into its folder: ``ablation.json`` before the first run, ``results.json`` as runs end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sera_core.ablating.jobs import Result, plain
from sera_core.ablation import Ablation
from sera_core.errors import StoreError
from sera_core.workspace import write_json

# Results are written as they come, but take no more than this share of the time.
_WRITING = 0.05


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Inside, no other ablation runs in the folder, which is created.

    Raises:
        StoreError: one does, or the folder cannot be created.
    """
    lock = FileLock(out / ".lock")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StoreError(f"Another ablation is running in {out}. Wait for it, or choose another --out.") from error
    except OSError as error:
        raise StoreError(f"Cannot write to {out}: {error.strerror}. Choose another --out.") from error
    try:
        yield
    finally:
        lock.release()


class Book:
    """The results of an ablation so far, in the order of its runs, and the file they are written to."""

    def __init__(self, out: Path, count: int) -> None:
        self._file = out / "results.json"
        self._results: list[Result | None] = [None] * count
        self._wait_until = 0.0

    def has(self, number: int) -> bool:
        """Whether a run has ended."""
        return self._results[number] is not None

    def note(self, number: int, result: Result) -> None:
        """Take a result, and write the file unless that was done a moment ago."""
        self._results[number] = result
        if time.monotonic() >= self._wait_until:
            self.write()

    def write(self) -> None:
        """Write the file; a reader never sees half of it."""
        began = time.monotonic()
        write_json(self._file, [plain(result) for result in self.results()])
        now = time.monotonic()
        self._wait_until = now + (now - began) / _WRITING

    def results(self) -> Sequence[Result]:
        """What there is, in the order of the runs."""
        return [result for result in self._results if result is not None]


def described(ablation: Ablation) -> dict[str, Any]:
    """What was asked for, as JSON-able values: the content of ``ablation.json``."""
    return {
        "name": ablation.name,
        "description": ablation.description,
        "arms": [
            {"name": arm.name, "variant": arm.variant, "point": dict(arm.point), "settings": dict(arm.settings)}
            for arm in ablation.arms
        ],
        "seeds": list(ablation.seeds),
        "baseline": dict(ablation.baseline),
        "families": {name: list(members) for name, members in ablation.families.items()},
    }

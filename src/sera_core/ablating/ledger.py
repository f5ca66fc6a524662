"""What earlier runs found out about stages, below the cache: their keys by signature, and how long they took.

It serves plans and estimates alone. Results never depend on it: a stage is reused by its key and its checksums.
"""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

from sera_core.ablating.stages import POLICY, Foreseen
from sera_core.workspace import CLAIMS, read_json


class Ledger:
    """Notes on stages in the folder ``foreseen`` of a cache; any number of processes may read and write at once."""

    def __init__(self, cache: Path) -> None:
        """`cache` is the cache of the runs."""
        self._cache = cache
        self.claims = cache / CLAIMS
        self._notes, self._times = cache / "foreseen" / "keys", cache / "foreseen" / "seconds"

    def note(self, stage: Foreseen, key: str, seconds: float, *, reused: bool) -> None:
        """A stage has ended with `key`, and took `seconds` when it was computed.

        The initial policy is said to be made anew each time, at once where it is cached: what it took at first stays.
        """
        self._notes.mkdir(parents=True, exist_ok=True)
        self._times.mkdir(parents=True, exist_ok=True)
        if stage.where == POLICY:
            seconds = max(seconds, self.seconds(stage) or 0.0)
        _write(self._notes / f"{stage.signature}.json", {"key": key, "seconds": seconds})
        if not reused:
            for name in (stage.kind, stage.sort):
                _write(self._times / f"{name}.json", seconds / stage.load)

    def known(self, stage: Foreseen) -> bool:
        """Whether the cache is known to hold the stage; one that nothing is known of may be there all the same."""
        note = _read(self._notes / f"{stage.signature}.json")
        if not isinstance(note, dict):
            return False
        return stage.where == POLICY or (self._cache / "stages" / f"{stage.name}-{note['key']}" / "stage.json").exists()

    def seconds(self, stage: Foreseen) -> float | None:
        """The seconds a stage took when it was computed; None if nothing is known of it."""
        note = _read(self._notes / f"{stage.signature}.json")
        return float(note["seconds"]) if isinstance(note, dict) else None

    def expected(self, stage: Foreseen) -> float | None:
        """The seconds a stage should take: as with another seed, else as the last of its sort; None if unknown."""
        for name in (stage.kind, stage.sort):
            found = _read(self._times / f"{name}.json")
            if isinstance(found, float | int):
                return float(found) * stage.load
        return None


def _write(path: Path, value: object) -> None:
    """Write a note; of several writers at once the last stays, and a reader sees one of them whole."""
    partial = path.with_name(f"{path.name}.{uuid4().hex}")
    partial.write_text(json.dumps(value), encoding="utf-8")
    partial.replace(path)


def _read(path: Path) -> object:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None

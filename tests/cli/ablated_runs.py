"""What an ablation left behind: its stages by key, and its results without the clock."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

_PASSING = ("out", "seconds", "own", "peak", "stages")
_PASSING_IN_REPORT = ("seconds", "work")


def stages_by_key(out: Path) -> dict[str, set[int]]:
    """Key of every stage below an ablation's folder to the files that record it: linked ones are one file."""
    found = defaultdict(set)
    for file in [*out.glob("*/seed-*/*/stage.json"), *out.glob("*/seed-*/iter_*/*/stage.json")]:
        found[json.loads(file.read_text(encoding="utf-8"))["key"]].add(file.stat().st_ino)
    return dict(found)


def timeless(out: Path) -> list[dict]:
    """The results of an ablation without times, places and what was in the store before."""
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    for result in results:
        result["keys"] = sorted(stage["key"] for stage in result["stages"].values())
        for name in _PASSING:
            del result[name]
        for name in _PASSING_IN_REPORT:
            del result["report"][name]
    return results

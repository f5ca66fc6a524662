"""What an ablation left behind: its stages by key, and its results without the clock."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from sera_core.testing.artefacts import artefact_hashes

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


def assert_close(first: Path, second: Path) -> None:
    """Two ablations left the same files and, up to rounding, the same results.

    Of runs that go on at the same time, the one that asks first decides beside which others a response is scored, and
    so how its log-prob is rounded.
    """
    found, expected = (flat(timeless(folder)) for folder in (first, second))
    numbers = {name: value for name, value in expected.items() if isinstance(value, float)}
    assert numbers
    assert {name: found.get(name) for name in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-4)
    assert {name: value for name, value in found.items() if name not in numbers} == {
        name: value for name, value in expected.items() if name not in numbers
    }
    for run in (path for path in first.glob("*/seed-*") if path.is_dir()):
        assert artefact_hashes(run).keys() == artefact_hashes(second / run.relative_to(first)).keys()


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """Nested JSON values by place, without the clock and without keys, which hash weights."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {place: value}
    kept = [(key, item) for key, item in items if key not in (*_PASSING, *_PASSING_IN_REPORT, "keys")]
    return {name: leaf for key, item in kept for name, leaf in flat(item, f"{place}/{key}").items()}

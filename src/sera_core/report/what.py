"""What was run: versions, components, data, policy and settings, by their hashes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sera_core.report.blocks import NONE, Section, Table, table
from sera_core.report.study import Run, Study
from sera_core.workspace import digest

# These name a run and change nothing in it.
_NAMES = ("name", "seed")
_STALE = "made with other settings"


def what_was_run(study: Study) -> Section:
    """Arms with their settings' hash, then everything the runs have in common or differ in."""
    blocks = [_arms(study), _facts(study)]
    if study.failed:
        rows = [(arm, str(seed), reason) for arm, seed, reason in study.failed]
        blocks.append(table("Runs that failed", ("arm", "seed", "reason"), rows))
    if study.missing:
        reasons = {key: _STALE if key in study.stale else "not there yet" for key in study.missing}
        rows = [(arm, str(seed), reason) for (arm, seed), reason in reasons.items()]
        blocks.append(table("Runs that are not finished", ("arm", "seed", "reason"), rows))
    return Section("what", "What was run", tuple(blocks))


def settings_hash(manifest: Mapping[str, Any]) -> str:
    """8 hex digits of a run's settings without name and seed, so that an arm has one."""
    return digest({key: value for key, value in manifest["settings"].items() if key not in _NAMES})[:8]


def _arms(study: Study) -> Table:
    rows = []
    for arm in study.arms:
        runs = study.of(arm)
        hashes = dict.fromkeys(settings_hash(run.manifest) for run in runs)
        iterations = {len(run.reports) for run in runs}
        rows.append(
            (
                arm,
                " ".join(hashes) or NONE,
                ", ".join(str(run.seed) for run in runs) or NONE,
                " to ".join(str(each) for each in sorted({min(iterations), max(iterations)})) if runs else NONE,
                study.baseline.get(arm, NONE),
            )
        )
    columns = ("arm", "settings", "finished seeds", "iterations", "compared with")
    return table("Arms", columns, rows, "Settings: hash of all that the arm sets, without name and seed.")


def _facts(study: Study) -> Table:
    """One row per fact; where runs differ, every value it took with the number of runs."""
    facts: dict[str, list[str]] = {}
    for run in study.runs:
        for name, value in _facts_of(run):
            facts.setdefault(name, []).append(value)
    rows = [(name, _counted(values, len(study.runs))) for name, values in facts.items()]
    return table("Versions, data and policies", ("", "value"), rows)


def _facts_of(run: Run) -> Iterable[tuple[str, str]]:
    manifest = run.manifest
    yield from manifest["versions"].items()
    data = manifest["data"]
    yield "source", data["source"]
    yield "data fingerprint", str(data["fingerprint"])[:16]
    yield "training pairs", f"{data['pairs']}"
    yield "held-out pairs", f"{data['validation']}"
    yield "evaluation prompts", f"{data['evaluation_prompts']}"
    yield "chat template", str(data["template"])[:16]
    yield "initial policy", str(manifest["initial_policy"]["weights"])[:16]
    yield "processes per run", str(manifest["processes"])
    yield "attention", ", ".join(manifest.get("attention", ())) or NONE
    yield from manifest["components"].items()


def _counted(values: list[str], runs: int) -> str:
    """``a`` where all runs have it, else ``a (3 runs), b (1 run)``; the first five values."""
    counts = {value: values.count(value) for value in dict.fromkeys(values)}
    if len(counts) == 1 and len(values) == runs:
        return values[0]
    shown = [f"{value} ({count} run{'s' if count > 1 else ''})" for value, count in counts.items()]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")

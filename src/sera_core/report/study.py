"""What lies in a folder: the finished runs of an ablation, or a single run, and what was meant to be there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from sera_core.ablating.names import point_text
from sera_core.configfile import as_spec
from sera_core.errors import ConfigError, StoreError, suggest
from sera_core.evidence import read_evidence

PLAN, RESULTS, MANIFEST = "ablation.json", "results.json", "manifest.json"
# These name and describe a run, and change nothing in it.
_WORDS = ("name", "seed", "description", "cites")


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run. `reports` are its iterations' reports, the first iteration first.

    `policy` is the key of the initial policy and the seconds that making it took; None where nobody wrote that down.
    """

    arm: str
    seed: int
    path: Path
    manifest: Mapping[str, Any]
    reports: tuple[Mapping[str, Any], ...]
    policy: tuple[str, float] | None = None

    @property
    def final(self) -> int:
        """The iteration that the final model comes from, from 1."""
        return int(self.manifest["final_iteration"])

    @property
    def report(self) -> Mapping[str, Any]:
        """The final iteration's report."""
        return self.reports[self.final - 1]

    def evidence(self, name: str, iteration: int | None = None) -> pd.DataFrame | None:
        """A table of an iteration (the final one if None), such as ``evaluate/samples.arrow``; None where it lacks."""
        path = self.path / f"iter_{self.final if iteration is None else iteration}" / name
        return read_evidence(path).to_pandas() if path.is_file() else None


@dataclass(frozen=True, slots=True)
class Study:
    """The runs of an ablation by arm and seed, or a single run as the one arm of its own.

    `groups` are the arms that stand at the same point of the grid, under a title each; `variants` holds each arm's
    variant and point. `baseline` maps an arm to the one it is compared with, `families` a family to its arms. `failed`
    holds arm, seed and reason, `missing` arm and seed; `stale` are those of `missing` that are finished but made with
    other settings than the arm has now, so that their figures are not the arm's.
    """

    path: Path
    name: str
    description: str
    single: bool
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    groups: Mapping[str, tuple[str, ...]]
    variants: Mapping[str, tuple[str | None, tuple[tuple[str, str], ...]]] = field(default_factory=dict)
    baseline: Mapping[str, str] = field(default_factory=dict)
    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    failed: tuple[tuple[str, int, str], ...] = ()
    missing: tuple[tuple[str, int], ...] = ()
    stale: tuple[tuple[str, int], ...] = ()

    def short(self, arm: str) -> str:
        """What an arm is called beside those of its group: its variant, where all else is the same."""
        variant = self.variants[arm][0] if len(self.groups) > 1 and arm in self.variants else None
        return arm if variant is None else variant

    def folders(self, arm: str) -> dict[int, Path]:
        """The finished runs of an arm: seed to folder."""
        return {run.seed: run.path for run in self.of(arm)}

    def of(self, arm: str) -> tuple[Run, ...]:
        """The finished runs of an arm, by seed."""
        return tuple(run for run in self.runs if run.arm == arm)


def read_study(path: Path, baseline: str | None = None) -> Study:
    """The ablation or the run in `path`; `baseline` is an arm, or a variant, that all others are compared with.

    Raises:
        StoreError: `path` is neither, cannot be read, or nothing in it is finished.
        ConfigError: there is no such baseline.
    """
    if (path / PLAN).is_file() or (path / RESULTS).is_file():
        study = _ablation(path)
    elif (path / MANIFEST).is_file():
        study = _single(path)
    else:
        raise StoreError(
            f"{path} holds neither an ablation ({PLAN}) nor a run ({MANIFEST}). Give the folder that `sera ablate` or "
            "`sera run` wrote to with --out."
        )
    if not study.runs:
        stale = f" with the settings in {PLAN}; {len(study.stale)} with other ones are" if study.stale else ""
        raise StoreError(f"No run in {path} is finished{stale}. Give the command that started it again, then report.")
    return study if baseline is None else replace(study, baseline=_compared_with(study, baseline))


def _ablation(path: Path) -> Study:
    results = _read(path / RESULTS) if (path / RESULTS).is_file() else []
    plan = _read(path / PLAN) if (path / PLAN).is_file() else _plan_of(results, path)
    wanted = {arm["name"]: arm.get("settings") for arm in plan["arms"]}
    names, seeds = tuple(wanted), tuple(plan["seeds"])
    errors = {(result["arm"], result["seed"]): result["error"] for result in results if result["error"] is not None}
    places = {(arm, seed): path / arm / f"seed-{seed}" for arm in names for seed in seeds}
    # What failed may have left an earlier run.
    there = {key: run for key, place in places.items() if key not in errors and (run := _run(place, *key)) is not None}
    found = {key: run for key, run in there.items() if _made_with(wanted[key[0]], run)}
    made = {(each["arm"], each["seed"]): each.get("stages", {}).get("policy") for each in results}
    lacking = [key for key in places if key not in found]
    return Study(
        path=path,
        name=plan["name"],
        description=plan.get("description", ""),
        single=False,
        arms=names,
        seeds=seeds,
        runs=tuple(_with_policy(run, made.get(key)) for key, run in found.items()),
        groups=_groups(plan["arms"]),
        variants={arm["name"]: (arm.get("variant"), tuple(arm.get("point", {}).items())) for arm in plan["arms"]},
        baseline=plan.get("baseline", {}),
        families={name: tuple(arms) for name, arms in plan.get("families", {}).items()},
        failed=tuple((*key, errors[key]) for key in lacking if key in errors),
        missing=tuple(key for key in lacking if key not in errors),
        stale=tuple(key for key in lacking if key in there),
    )


def _made_with(settings: Mapping[str, Any] | None, run: Run) -> bool:
    """Whether a run has the settings of its arm; also where an earlier version did not write those down."""
    return not settings or _that_matter(settings) == _that_matter(run.manifest["settings"])


def _that_matter(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without words, the source as a run spells it: ``path`` for ``{name: preferences, path: path}``."""
    spec = as_spec(settings.get("source", {}))
    source = {"name": "world", **spec} if isinstance(spec, dict) else spec
    if isinstance(source, dict) and source["name"] == "preferences" and "path" in source:
        source = {key: value for key, value in source.items() if key != "path"} | {"name": source["path"]}
    return {key: value for key, value in settings.items() if key not in _WORDS} | {"source": source}


def _plan_of(results: Sequence[Mapping[str, Any]], path: Path) -> dict[str, Any]:
    """What results alone say of the plan."""
    arms = dict.fromkeys(result["arm"] for result in results)
    seeds = dict.fromkeys(result["seed"] for result in results)
    return {"name": path.resolve().name, "arms": [{"name": arm} for arm in arms], "seeds": list(seeds)}


def _groups(arms: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Arms by their point of the grid; all together where that leaves each arm alone."""
    points: dict[str, list[str]] = {}
    for arm in arms:
        points.setdefault(point_text(arm.get("point", {})), []).append(arm["name"])
    if all(len(names) == 1 for names in points.values()):
        return {"": tuple(arm["name"] for arm in arms)}
    return {label: tuple(names) for label, names in points.items()}


def _single(path: Path) -> Study:
    manifest = _read(path / MANIFEST)
    run = _run(path, manifest["name"], manifest["seed"])
    runs = () if run is None else (run,)
    names = (manifest["name"],)
    return Study(path, manifest["name"], "", True, names, (manifest["seed"],), runs, {"": names})


def _run(path: Path, arm: str, seed: int) -> Run | None:
    """The finished run in a folder; None where there is none."""
    manifest = _read(path / MANIFEST) if (path / MANIFEST).is_file() else {}
    if "final_iteration" not in manifest:
        return None
    files = (path / f"iter_{t}" / "report.json" for t in range(1, len(manifest["config"]) + 1))
    return Run(arm, seed, path, manifest, tuple(_read(file) for file in files if file.is_file()))


def _with_policy(run: Run, made: Mapping[str, Any] | None) -> Run:
    return run if made is None else replace(run, policy=(str(made["key"]), float(made["seconds"])))


def _compared_with(study: Study, baseline: str) -> dict[str, str]:
    if baseline in study.arms:
        return {arm: baseline for arm in study.arms if arm != baseline}
    at = {key: arm for arm, key in study.variants.items()}
    found = {arm: at.get((baseline, point)) for arm, (_, point) in study.variants.items()}
    known = {variant for variant, _ in study.variants.values() if variant is not None}
    if baseline not in known:
        raise ConfigError(
            f"No arm and no variant '{baseline}' in {study.path}. {suggest(baseline, {*study.arms, *known})}"
        )
    return {arm: other for arm, other in found.items() if other is not None and other != arm}


def _read(path: Path) -> Any:  # noqa: ANN401
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}. Give the command that wrote it again.") from error

"""Pick one option's value on held-out pairs: an ablation over its values, decided by the pairs set aside for tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from sera_core.ablating.config import label_of
from sera_core.ablating.jobs import Result
from sera_core.ablating.names import run_name
from sera_core.ablation import Ablation, Arm
from sera_core.ablation_table import Estimate, estimate
from sera_core.configfile import set_path
from sera_core.errors import ConfigError, suggest
from sera_core.workspace import write_json

Metric = Literal["accuracy", "margin_mean"]
METRICS: tuple[str, ...] = get_args(Metric)
DEFAULT_PAIRS = 50
# Settings with nothing to pick, by section.
_NO_CHOICE: Mapping[str, str] = {
    "seed": "the best of several seeds is only the luckiest; --seeds averages over them",
    "name": "it changes nothing that is trained",
    "description": "it changes nothing that is trained",
    "cites": "it changes nothing that is trained",
    "evaluation": "it changes what is measured, not what is trained, so that values could not be compared",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting's dotted path and the two or more values to pick from, all different."""

    path: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What to run and how to decide.

    `ablation` has one arm per value of `choice`, in its order; the value with the highest mean `metric` on the first
    `pairs` held-out pairs is picked.
    """

    choice: Choice
    metric: str
    pairs: int
    ablation: Ablation


@dataclass(frozen=True, slots=True)
class Trial:
    """What one value came to: means over seeds by metric, on the tuning pairs and on all other held-out pairs.

    `failed` counts runs that ended in an error; with one, the value is not comparable and cannot be picked.
    """

    value: Any
    arm: str
    tuning: Mapping[str, Estimate]
    held_out: Mapping[str, Estimate]
    failed: int


def read_choice(argument: str) -> Choice:
    """The choice written ``key.path=value,value,...``; values are YAML.

    Raises:
        ConfigError: not of that form, fewer than two values, or one value twice.
    """
    path, equals, text = argument.partition("=")
    if not equals or not all(part.strip() for part in path.split(".")):
        raise ConfigError(
            f"'{argument}' is not of the form key.path=value,value,..., such as objective.loss.beta=0.1,0.5."
        )
    try:
        values = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError as error:
        raise ConfigError(f"'{argument}': the values are not valid YAML: {error}\nQuote text with commas.") from error
    if len(values) < 2:
        raise ConfigError(f"'{argument}' leaves nothing to pick: give {path.strip()} two or more values, by commas.")
    labels = [label_of(value) for value in values]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ConfigError(f"'{argument}' holds the value {twice} twice. Keep one of them.")
    return Choice(path.strip(), tuple(values))


def read_seeds(text: str) -> tuple[int, ...]:
    """Seeds written ``0,1,2``.

    Raises:
        ConfigError: not whole numbers from 0 on, or one of them twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len({int(part) for part in parts}) < len(parts):
        raise ConfigError(f"--seeds must be different whole numbers with commas between, such as 0,1,2; got '{text}'.")
    return tuple(int(part) for part in parts)


def make_tuning(
    settings: Mapping[str, Any], choice: Choice, *, metric: str, pairs: int | None = None, seeds: Sequence[int] = ()
) -> Tuning:
    """One arm per value, on top of `settings`, which have a name.

    `pairs` None means the settings' own evaluation.tuning_pairs, or else `DEFAULT_PAIRS`; no `seeds` means theirs.

    Raises:
        ConfigError: an unknown metric, no pairs to tune on, a setting with nothing to pick, or a path that leads
            through a value without settings.
    """
    section = choice.path.partition(".")[0]
    if section in _NO_CHOICE:
        raise ConfigError(f"{choice.path} is nothing to tune: {_NO_CHOICE[section]}. Choose another option.")
    if metric not in METRICS:
        raise ConfigError(f"--metric has no value '{metric}'. {suggest(metric, METRICS)}")
    evaluation = settings.get("evaluation")
    own = evaluation.get("tuning_pairs") if isinstance(evaluation, Mapping) else None
    pairs = (own or DEFAULT_PAIRS) if pairs is None else pairs
    if not isinstance(pairs, int) or pairs < 1:
        raise ConfigError(
            f"evaluation.tuning_pairs = {pairs!r} leaves nothing to tune on. Give at least 1 with --pairs."
        )
    base = set_path(settings, "evaluation.tuning_pairs", pairs)
    name = str(settings["name"])
    ablation = Ablation(
        name=f"{name}-tune-{choice.path.rpartition('.')[2]}",
        description=f"{name}: {choice.path} picked by {metric} on {pairs} held-out pairs.",
        arms=_arms(base, choice),
        seeds=tuple(seeds) or (settings.get("seed", 0),),
        baseline={},
    )
    return Tuning(choice, metric, pairs, ablation)


def _arms(base: Mapping[str, Any], choice: Choice) -> tuple[Arm, ...]:
    labels = [label_of(value) for value in choice.values]
    # Texts may differ only in what folders cannot show; not all file systems tell a from A.
    if len({Arm(None, {choice.path: label}, {}).name.casefold() for label in labels}) < len(labels):
        labels = [f"{number} {label}" for number, label in enumerate(labels, start=1)]
    return tuple(
        _arm(set_path(base, choice.path, value), {choice.path: label})
        for value, label in zip(choice.values, labels, strict=True)
    )


def _arm(settings: Mapping[str, Any], point: Mapping[str, str]) -> Arm:
    return Arm(None, point, {**settings, "name": run_name(Arm(None, point, {}).name)})


def trials_of(tuning: Tuning, results: Sequence[Result]) -> tuple[Trial, ...]:
    """What each value came to, in the order of the choice."""
    found = []
    for value, arm in zip(tuning.choice.values, tuning.ablation.arms, strict=True):
        own = [result for result in results if result.arm == arm.name]
        reports = [result.report for result in own if result.report is not None]
        on_tuning = _estimates([report["tuning"] for report in reports])
        found.append(Trial(value, arm.name, on_tuning, _estimates(reports), len(own) - len(reports)))
    return tuple(found)


def _estimates(figures: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    return {name: estimate([float(each[name]) for each in figures]) for name in METRICS} if figures else {}


def best_of(tuning: Tuning, trials: Sequence[Trial]) -> Trial | None:
    """The value of highest mean metric on the tuning pairs, the first among equals; None if none finished whole."""
    whole = [trial for trial in trials if not trial.failed]
    return max(whole, key=lambda trial: trial.tuning[tuning.metric].mean, default=None)


def write_findings(tuning: Tuning, trials: Sequence[Trial], settings: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write ``tune.json`` and, if a value could be picked, ``best.yaml`` into `out`; the content of the former.

    ``best.yaml`` is `settings` with the value picked. It keeps the tuning pairs set aside: the value was chosen on
    them, so they say nothing about it any more.
    """
    best, file = best_of(tuning, trials), out / "best.yaml"
    findings = {
        "path": tuning.choice.path,
        "metric": tuning.metric,
        "pairs": tuning.pairs,
        "seeds": list(tuning.ablation.seeds),
        "best": None if best is None else best.value,
        "config": None if best is None else str(file),
        "trials": [_plain(trial) for trial in trials],
    }
    file.unlink(missing_ok=True)
    if best is not None:
        content = set_path(set_path(settings, "evaluation.tuning_pairs", tuning.pairs), tuning.choice.path, best.value)
        head = f"# {tuning.choice.path} picked by {tuning.metric} on the first {tuning.pairs} held-out pairs.\n"
        partial = file.with_name(file.name + ".partial")
        partial.write_text(head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
        partial.replace(file)
    write_json(out / "tune.json", findings)
    return findings


def _plain(trial: Trial) -> dict[str, Any]:
    figures = {"tuning": trial.tuning, "held_out": trial.held_out}
    shown = {key: {name: asdict(value) for name, value in each.items()} for key, each in figures.items()}
    return {"value": trial.value, "arm": trial.arm, **shown, "failed": trial.failed}

"""An ablation as data: a base configuration, named variants, crossed axes, seeds. Pure; running it is `ablate`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sera_core.ablating.config import AblationConfig, Resources, Settings, labels_of, name_of
from sera_core.ablating.groups import baselines_of, families_of
from sera_core.catalog import first_problem
from sera_core.configfile import CONFIGS, locate, merge, override, read, set_path
from sera_core.errors import ConfigError, suggest

_EXTENDS = "extends"
_RESOURCES = "resources"


@dataclass(frozen=True, slots=True)
class Arm:
    """One configuration of an ablation, to be run with each seed.

    `variant` is None where the ablation has no variants; `point` maps each axis to the label of its value.
    """

    variant: str | None
    point: Mapping[str, str]
    settings: Mapping[str, Any]
    resources: Resources = field(default_factory=Resources)

    @property
    def name(self) -> str:
        """``variant,axis=value,...``: unique within the ablation and fit for a folder.

        At most 100 characters: what is longer is cut and ends in a hash of the whole.
        """
        return name_of(self.variant, self.point)


@dataclass(frozen=True, slots=True)
class Ablation:
    """What to run: every arm with every seed.

    `baseline` maps an arm's name to the one it is compared with; `families` a family's name to its arms, which differ
    in the frontier's axis alone and are compared with other families at equal KL.
    """

    name: str
    description: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    baseline: Mapping[str, str]
    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def presets() -> dict[str, Path]:
    """Shipped ablations by name."""
    return {path.stem: path for path in sorted((CONFIGS / "ablations").glob("*.yaml"))}


def locate_ablation(name: str) -> Path:
    """The file an argument means: a path, or the name of a shipped ablation.

    Raises:
        ConfigError: neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = presets()
    key = path.stem if path.parent.name in {"", "ablations"} else name
    if key not in known:
        raise ConfigError(f"No ablation file '{name}', and no shipped one of that name. {suggest(name, known)}")
    return known[key]


def make_ablation(raw: Mapping[str, Any], beside: Path, overrides: Sequence[str] = ()) -> Ablation:
    """The arms of an ablation file's content; `beside` is the folder that paths in it are relative to.

    `overrides`, written ``key.path=value``, are laid over the base of every variant and the ablation's `settings`; what
    a variant or an axis sets itself stays.

    Raises:
        ConfigError: unknown keys, wrong types, a seed that is negative or there twice, an arm without a name of its
            own, a baseline that no arm is, a frontier that is no axis, or an override that changes no arm.
    """
    config = _validated(raw)
    check_seeds(config.seeds)
    variants: Mapping[str | None, Settings] = config.variants or {None: {}}  # type: ignore[assignment]  # wider keys
    arms = tuple(
        _arm(config, variant, settings, point, (beside, overrides))
        for variant, settings in variants.items()
        for point in itertools.product(*(labels_of(axis, values) for axis, values in config.grid.items()))
    )
    _check_names([arm.name for arm in arms])
    _check_overrides(arms, overrides)
    return Ablation(
        name=config.name,
        description=config.description,
        arms=arms,
        seeds=tuple(config.seeds),
        baseline=baselines_of(config, arms),
        families=families_of(config, arms),
    )


def _validated(raw: Mapping[str, Any]) -> AblationConfig:
    try:
        return AblationConfig.model_validate(dict(raw))
    except ValidationError as error:
        detail = error.errors()[0]
        if detail["type"] == "extra_forbidden":
            key = ".".join(str(part) for part in detail["loc"])
            fields = Resources.model_fields if detail["loc"][0] == _RESOURCES else AblationConfig.model_fields
            raise ConfigError(f"Unknown key '{key}' in the ablation. {suggest(key, fields)}") from error
        raise ConfigError(f"Ablation: {first_problem(error)}") from error


def _check_names(names: Sequence[str]) -> None:
    if not {".", ".."}.isdisjoint(names):
        raise ConfigError(
            "An arm of the ablation would be called '.' or '..', which no folder can. Rename the variant."
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"Two arms of the ablation are called '{twice}'. Give the axis values distinct labels.")


def _check_overrides(arms: Sequence[Arm], overrides: Iterable[str]) -> None:
    for assignment in overrides:
        if all(override(arm.settings, [assignment]) != arm.settings for arm in arms):
            key = assignment.partition("=")[0]
            raise ConfigError(
                f"Override '{assignment}' would change nothing: every arm of the ablation sets {key} itself. Copy the "
                "ablation's file and change it there."
            )


def read_ablation(path: Path, overrides: Sequence[str] = ()) -> Ablation:
    """The ablation in a file, with `overrides` as in `make_ablation`.

    Raises:
        ConfigError: see `make_ablation`; or the file cannot be read.
    """
    return make_ablation({"name": path.stem, **read(path)}, path.parent, overrides)


def read_seeds(text: str) -> tuple[int, ...]:
    """Seeds as the command line has them: ``3`` means the first three, ``0,2,5`` these, ``7,`` seed 7 alone.

    Raises:
        ConfigError: neither a number of at least 1 nor different whole numbers with commas between.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1 and parts[0].isdecimal() and int(parts[0]) > 0:
        return tuple(range(int(parts[0])))
    parts = parts[:-1] if len(parts) > 1 and not parts[-1] else parts
    if (len(parts) == 1 and "," not in text) or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"--seeds is a number of seeds such as 3, or a list such as 0,1,2; got '{text}'.")
    seeds = tuple(int(part) for part in parts)
    check_seeds(seeds)
    return seeds


def with_seeds(ablation: Ablation, seeds: Sequence[int]) -> Ablation:
    """The ablation with other seeds.

    Raises:
        ConfigError: no seed, a negative one, or one twice.
    """
    if not seeds:
        raise ConfigError("An ablation needs at least one seed.")
    check_seeds(seeds)
    return replace(ablation, seeds=tuple(seeds))


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that cannot be run or would count twice, with ConfigError."""
    negative = next((seed for seed in seeds if seed < 0), None)
    if negative is not None:
        raise ConfigError(f"seeds: {negative} is negative; a seed is a whole number >= 0. Change it.")
    twice = next((seed for seed in seeds if seeds.count(seed) > 1), None)
    if twice is not None:
        raise ConfigError(f"seeds: {twice} is there twice, and would count as two independent runs. Remove one.")


def _arm(
    config: AblationConfig,
    variant: str | None,
    settings: Settings,
    point: tuple[tuple[str, str, object], ...],
    given: tuple[Path, Sequence[str]],
) -> Arm:
    """One arm; `given` is the folder of relative paths and the overrides."""
    base, resources = settings.get(_EXTENDS, config.base), settings.get(_RESOURCES)
    own = {key: value for key, value in settings.items() if key not in {_EXTENDS, _RESOURCES}}
    file = given[0] / str(base)
    result = merge(read(file if file.is_file() else locate(str(base))), config.settings)
    result = merge(override(result, given[1]), own)
    for axis, _, value in point:
        named = isinstance(config.grid[axis], dict)
        result = merge(result, value) if named else set_path(result, axis, value)  # type: ignore[arg-type]  # a mapping
    at = {axis: label for axis, label, _ in point}
    name = re.sub(r"[^A-Za-z0-9._-]", "-", name_of(variant, at)) or config.name
    found = config.resources if resources is None else _resources(str(variant), resources)
    return Arm(variant, at, {**result, "name": name}, found)


def _resources(variant: str, raw: object) -> Resources:
    try:
        return Resources.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"variants.{variant}.resources: {first_problem(error)}") from error

"""An ablation as data: a base configuration, named variants, crossed axes, seeds. Pure; running it is `ablate`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sera_core.ablating.config import EXTENDS, RESOURCES, AblationConfig, Resources, Settings, labels_of
from sera_core.ablating.groups import baselines_of, families_of
from sera_core.ablating.layers import OPTIONS, Group, Layer, Override, Stack, check_heeded, check_keys, layer_of
from sera_core.ablating.names import Place, check_names, name_of, run_name
from sera_core.catalog import first_problem
from sera_core.configfile import CONFIGS, locate, merge, read
from sera_core.errors import ConfigError, suggest


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
        """``variant,axis=value,...``: unique within the ablation, also without regard to case, and fit for a folder.

        An axis stands there by the last part of its path, or by as many as tell it from the others. At most 100 bytes
        of UTF-8: what is longer is cut and ends in a hash of the whole.
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
            own, a baseline that no arm is or several are, a frontier that is no axis or several are, an override that
            changes no arm, or a setting that no arm has because others take its place.
    """
    config = _validated(raw)
    check_seeds(config.seeds)
    check_keys(config, overrides)
    variants: Mapping[str | None, Settings] = config.variants or {None: {}}  # type: ignore[assignment]  # wider keys
    points = tuple(itertools.product(*(labels_of(axis, values) for axis, values in config.grid.items())))
    bases = {variant: _base(config, variant, settings, beside) for variant, settings in variants.items()}
    places = [(variant, point) for variant in variants for point in points]
    stacks = [Stack(bases[variant], _layers(config, variant, point, overrides)) for variant, point in places]
    arms = tuple(_arm(config, place, stack) for place, stack in zip(places, stacks, strict=True))
    check_names([(arm.name, place) for arm, place in zip(arms, places, strict=True)])
    check_heeded(stacks)
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
        raise ConfigError(_mistake(error)) from error


def _mistake(error: ValidationError) -> str:
    """What is wrong with an ablation file, and what to do."""
    details = error.errors()
    first = details[0]["loc"]
    if details[0]["type"] == "extra_forbidden":
        key, last = ".".join(map(str, first)), str(first[-1])
        fields = Resources.model_fields if first[0] == RESOURCES else AblationConfig.model_fields
        option = f"{last} is an option of the command: --{last}. " if last in OPTIONS else ""
        return f"Unknown key '{key}' in the ablation. {option}{suggest(last, fields)}"
    unquoted = next((detail for detail in details if detail["loc"][-1] == "[key]"), None)
    if unquoted is not None:
        # The library's tags for members of a union hold brackets.
        where = ".".join(part for part in map(str, unquoted["loc"][:-2]) if "[" not in part)
        return f"Ablation: {where} has the key {unquoted['input']!r}, which must be text. Put it in quotes."
    empty = any(detail["input"] is None and detail["loc"][0] in {"variants", "grid"} for detail in details)
    hint = " {} stands for no settings of its own." if empty else ""
    return f"Ablation: {first_problem(error)}{hint}"


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


def _base(config: AblationConfig, variant: str | None, settings: Settings, beside: Path) -> dict[str, Any]:
    """What a variant starts from, with the ablation's `settings` on top."""
    base = settings.get(EXTENDS, config.base)
    where = f"variants.{variant}.{EXTENDS}" if EXTENDS in settings else "base"
    if not isinstance(base, str):
        raise ConfigError(f"{where} must be one preset's name or one file, got {base!r}.")
    try:
        raw = read(beside / base if (beside / base).is_file() else locate(base))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return merge(raw, config.settings)


def _layers(
    config: AblationConfig, variant: str | None, point: Sequence[tuple[str, str, object]], overrides: Sequence[str]
) -> tuple[Layer, ...]:
    """What lies over the base of an arm: overrides, the variant, the axes in their order."""
    settings = config.variants[variant] if variant is not None else {}
    own = {key: value for key, value in settings.items() if key not in {EXTENDS, RESOURCES}}
    return (
        *(Override(assignment) for assignment in overrides),
        Group(f"variants.{variant}", own),
        *(layer_of(axis, config.grid[axis], label, value) for axis, label, value in point),
    )


def _arm(config: AblationConfig, place: Place, stack: Stack) -> Arm:
    variant, point = place
    at = {axis: label for axis, label, _ in point}
    name = name_of(variant, at)
    try:
        settings = stack.settings()
    except ConfigError as error:
        raise ConfigError(f"Arm '{name}': {error}") from error
    resources = None if variant is None else config.variants[variant].get(RESOURCES)
    found = config.resources if resources is None else _resources(str(variant), resources)
    return Arm(variant, at, {**settings, "name": run_name(name or config.name)}, found)


def _resources(variant: str, raw: object) -> Resources:
    try:
        return Resources.model_validate(raw)
    except ValidationError as error:
        where, detail = f"variants.{variant}.resources", error.errors()[0]
        if detail["type"] == "extra_forbidden":
            key = str(detail["loc"][-1])
            raise ConfigError(f"Unknown key '{where}.{key}'. {suggest(key, Resources.model_fields)}") from error
        raise ConfigError(f"{where}: {first_problem(error)}") from error

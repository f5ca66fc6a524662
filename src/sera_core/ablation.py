"""An ablation as data: a base configuration, named variants, crossed axes, seeds. Pure; running it is `ablate`."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sera_core.catalog import first_problem
from sera_core.configfile import CONFIGS, locate, merge, read, set_path
from sera_core.errors import ConfigError, suggest

_EXTENDS = "extends"
# File systems take 255 bytes; a table has less room.
_LONGEST_NAME = 100

Settings = dict[str, Any]
Axis = list[Any] | dict[str, Settings]


class AblationConfig(BaseModel):
    """The content of an ablation file.

    Every variant is crossed with every point of the grid and every seed. An axis is either a dotted key with the
    values it takes, or a name with labelled groups of settings, such as a step size that is a beta and a learning rate.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    base: str = Field(description="A preset or a file that every variant starts from, unless it `extends` another.")
    settings: Settings = Field(default_factory=dict, description="Laid over the base of every variant.")
    variants: dict[str, Settings] = Field(default_factory=dict, description="Name to settings; `extends` changes base.")
    grid: dict[str, Axis] = Field(default_factory=dict, description="Dotted key to values, or name to named settings.")
    seeds: Annotated[list[int], Field(min_length=1)] = Field(default_factory=lambda: [0, 1, 2])
    baseline: str | dict[str, str] | None = Field(
        default=None,
        description="The variant others are compared to, a mapping variant: variant, or a point as `radius=0.0`.",
    )


@dataclass(frozen=True, slots=True)
class Arm:
    """One configuration of an ablation, to be run with each seed.

    `variant` is None where the ablation has no variants; `point` maps each axis to the label of its value.
    """

    variant: str | None
    point: Mapping[str, str]
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """``variant,axis=value,...``: unique within the ablation and fit for a folder.

        At most 100 characters: what is longer is cut and ends in a hash of the whole.
        """
        parts = [] if self.variant is None else [self.variant]
        parts += [f"{axis.rpartition('.')[2]}={label}" for axis, label in self.point.items()]
        whole = ",".join(parts)
        name = re.sub(r"[^A-Za-z0-9._=,+-]+", "_", whole)
        if len(name) <= _LONGEST_NAME:
            return name
        digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
        return f"{name[: _LONGEST_NAME - len(digest) - 1]}-{digest}"


@dataclass(frozen=True, slots=True)
class Ablation:
    """What to run: every arm with every seed. `baseline` maps an arm's name to the one it is compared with."""

    name: str
    description: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    baseline: Mapping[str, str]


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


def make_ablation(raw: Mapping[str, Any], beside: Path) -> Ablation:
    """The arms of an ablation file's content; `beside` is the folder that paths in it are relative to.

    Raises:
        ConfigError: unknown keys, wrong types, a seed that is negative or there twice, an arm without a
            name of its own, or a baseline that no arm is.
    """
    try:
        config = AblationConfig.model_validate(dict(raw))
    except ValidationError as error:
        detail = error.errors()[0]
        if detail["type"] == "extra_forbidden":
            key = ".".join(str(part) for part in detail["loc"])
            raise ConfigError(
                f"Unknown key '{key}' in the ablation. {suggest(key, AblationConfig.model_fields)}"
            ) from error
        raise ConfigError(f"Ablation: {first_problem(error)}") from error
    _check_seeds(config.seeds)
    variants: Mapping[str | None, Settings] = config.variants or {None: {}}  # type: ignore[assignment]  # wider keys
    arms = tuple(
        _arm(config, variant, settings, point, beside)
        for variant, settings in variants.items()
        for point in itertools.product(*(_labels(axis, values) for axis, values in config.grid.items()))
    )
    names = [arm.name for arm in arms]
    if not {".", ".."}.isdisjoint(names):
        raise ConfigError(
            "An arm of the ablation would be called '.' or '..', which no folder can. Rename the variant."
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"Two arms of the ablation are called '{twice}'. Give the axis values distinct labels.")
    return Ablation(config.name, config.description, arms, tuple(config.seeds), _baselines(config, arms))


def read_ablation(path: Path) -> Ablation:
    """The ablation in a file.

    Raises:
        ConfigError: see `make_ablation`; or the file cannot be read.
    """
    return make_ablation({"name": path.stem, **read(path)}, path.parent)


def _check_seeds(seeds: list[int]) -> None:
    negative = next((seed for seed in seeds if seed < 0), None)
    if negative is not None:
        raise ConfigError(f"seeds: {negative} is negative; a seed is a whole number >= 0. Change it.")
    twice = next((seed for seed in seeds if seeds.count(seed) > 1), None)
    if twice is not None:
        raise ConfigError(f"seeds: {twice} is there twice, and would count as two independent runs. Remove one.")


def _labels(axis: str, values: Axis) -> list[tuple[str, str, object]]:
    """(axis, label, value) of each point of one axis."""
    if not values:
        raise ConfigError(f"grid.{axis} is empty. Give it at least one value.")
    if isinstance(values, dict):
        return [(axis, label, settings) for label, settings in values.items()]
    return [(axis, label_of(value), value) for value in values]


def label_of(value: object) -> str:
    """A value as the name of its arm shows it."""
    if isinstance(value, dict):
        value = "+".join(f"{key}={label_of(part)}" for key, part in value.items())
    return str(value)


def _arm(
    config: AblationConfig,
    variant: str | None,
    settings: Settings,
    point: tuple[tuple[str, str, object], ...],
    beside: Path,
) -> Arm:
    base = settings.get(_EXTENDS, config.base)
    own = {key: value for key, value in settings.items() if key != _EXTENDS}
    file = beside / str(base)
    result = merge(merge(read(file if file.is_file() else locate(str(base))), config.settings), own)
    for axis, _, value in point:
        named = isinstance(config.grid[axis], dict)
        result = merge(result, value) if named else set_path(result, axis, value)  # type: ignore[arg-type]  # a mapping
    arm = Arm(variant, {axis: label for axis, label, _ in point}, result)
    return Arm(variant, arm.point, {**result, "name": re.sub(r"[^A-Za-z0-9._-]", "-", arm.name) or config.name})


def _baselines(config: AblationConfig, arms: tuple[Arm, ...]) -> dict[str, str]:
    """Arm to compared arm: another variant at the same grid point, or another point of the same variant."""
    asked = config.baseline
    if asked is None:
        return {}
    if isinstance(asked, str) and asked not in config.variants:
        axis, label = _point(config, asked)
        targets = {arm.name: (arm.variant, {**arm.point, axis: label}) for arm in arms}
    else:
        of_variant = dict.fromkeys(config.variants, asked) if isinstance(asked, str) else asked
        for name in (*of_variant, *of_variant.values()):
            if name not in config.variants:
                raise ConfigError(f"baseline: '{name}' is no variant. {suggest(name, config.variants)}")
        targets = {arm.name: (of_variant.get(str(arm.variant), arm.variant), dict(arm.point)) for arm in arms}
    names = {(arm.variant, tuple(arm.point.items())): arm.name for arm in arms}
    found = {name: names[variant, tuple(point.items())] for name, (variant, point) in targets.items()}
    return {name: base for name, base in found.items() if name != base}


def _point(config: AblationConfig, text: str) -> tuple[str, str]:
    """(axis, label) of a point written ``key=value``; the key may be the last part of a dotted one."""
    points = {
        f"{key}={label}": (axis, label)
        for axis, values in config.grid.items()
        for _, label, _ in _labels(axis, values)
        for key in (axis, axis.rpartition(".")[2])
    }
    if text not in points:
        raise ConfigError(
            f"baseline '{text}' is no variant and no point of the grid. {suggest(text, [*config.variants, *points])}"
        )
    return points[text]

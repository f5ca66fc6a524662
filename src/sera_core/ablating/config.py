"""The keys of an ablation file, and how arms are called after them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from sera_core.errors import ConfigError

# File systems take 255 bytes; a table has less room.
_LONGEST_NAME = 100

Settings = dict[str, Any]
Axis = list[Any] | dict[str, Settings]


class Resources(BaseModel):
    """What one run of an arm takes of a machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cores: int | None = Field(default=None, ge=1, description="Threads; null: the cores there are over --processes.")
    memory: float | None = Field(default=None, gt=0, description="GB (10^9 bytes); null: estimated, then measured.")
    gpus: float = Field(default=0.0, ge=0, description="Devices, for the executor ray.")


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
    frontier: str | None = Field(
        default=None, description="An axis of step sizes: arms that differ in it are a family."
    )
    resources: Resources = Field(default_factory=Resources, description="What a run takes; a variant may have its own.")
    seeds: Annotated[list[int], Field(min_length=1)] = Field(default_factory=lambda: [0, 1, 2])
    baseline: str | dict[str, str] | None = Field(
        default=None,
        description="The variant others are compared to, a mapping variant: variant, or a point as `radius=0.0`.",
    )


def name_of(variant: str | None, point: Mapping[str, str]) -> str:
    """The name of a variant at a point of the grid, as `Arm.name` says."""
    parts = [] if variant is None else [variant]
    parts += [f"{axis.rpartition('.')[2]}={label}" for axis, label in point.items()]
    whole = ",".join(parts)
    name = re.sub(r"[^A-Za-z0-9._=,+-]+", "_", whole)
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{name[: _LONGEST_NAME - len(digest) - 1]}-{digest}"


def labels_of(axis: str, values: Axis) -> list[tuple[str, str, object]]:
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

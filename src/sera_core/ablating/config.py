"""The keys of an ablation file, and the points of its axes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sera_core.errors import ConfigError

# Keys of a variant that are no settings of its runs.
EXTENDS = "extends"
RESOURCES = "resources"

Settings = dict[str, Any]
Axis = list[Any] | dict[str, Settings]


def _devices(count: float) -> float:
    if count > 1 and count != int(count):
        raise ValueError("must be a whole number where it is above 1: parts are parts of one device")
    return count


class Resources(BaseModel):
    """What one run of an arm takes of a machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cores: int | None = Field(default=None, ge=1, description="Threads; null: the cores there are over --processes.")
    memory: float | None = Field(default=None, gt=0, description="GB (10^9 bytes); null: estimated, then measured.")
    gpus: Annotated[float, AfterValidator(_devices)] = Field(default=0.0, ge=0, description="Devices; parts of one.")


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


def labels_of(axis: str, values: Axis) -> list[tuple[str, str, object]]:
    """(axis, label, value) of each point of one axis.

    Raises:
        ConfigError: no value, or one twice.
    """
    if not values:
        raise ConfigError(f"grid.{axis} is empty. Give it at least one value.")
    if isinstance(values, dict):
        return [(axis, label, settings) for label, settings in values.items()]
    shown = [repr(value) for value in values]
    twice = next((each for each in shown if shown.count(each) > 1), None)
    if twice is not None:
        raise ConfigError(f"grid.{axis} holds the value {twice} twice. Keep one of them.")
    return [(axis, label_of(value), value) for value in values]


def label_of(value: object) -> str:
    """A value as the name of its arm shows it."""
    if isinstance(value, dict):
        value = "+".join(f"{key}={label_of(part)}" for key, part in value.items())
    return str(value)

"""How an arm's settings are laid over each other, and what is refused because no run would heed it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sera_core.ablating.config import EXTENDS, RESOURCES, AblationConfig, Axis, Settings
from sera_core.configfile import merge, override, set_path
from sera_core.errors import ConfigError

_SEED = "every arm runs with each seed of the ablation. Use seeds in its file, or --seeds"
_IN_FILE = "it is a key of the ablation's file, not a setting of its runs. Change it there"
_VARIANT = "only variants have it. Make what differs in it variants of their own"
OPTIONS = ("out", "cache", "processes", "executor", "cores", "memory")
# Keys that the ablation sets itself, or that are none of a run's.
_NOTHING_TO_VARY: Mapping[str, str] = {
    **dict.fromkeys(("base", "settings", "variants", "grid", "frontier", "baseline"), _IN_FILE),
    **{name: f"it is an option of the command. Use --{name}" for name in OPTIONS},
    "seed": _SEED,
    "seeds": _SEED,
    "name": "a run is called after its arm. Name the variants and axis values instead",
    EXTENDS: _VARIANT,
    RESOURCES: "it is what runs take, not a setting of theirs. Set it in the ablation's file, or in a variant",
}


class Layer(Protocol):
    """Something that is laid over settings."""

    def over(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings with the layer on top."""

    def without_each(self) -> Iterator[tuple[Layer, Layer]]:
        """Each single setting of the layer, and the layer without it."""

    def unheeded(self) -> str:
        """Says that the layer's setting, which is its only one, is in no arm, and what to do."""


@dataclass(frozen=True, slots=True)
class Group:
    """Settings of a variant or of a labelled point of the grid; `where` is their place in the ablation's file."""

    where: str
    settings: Settings

    def over(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings with the group on top, mapping by mapping."""
        return merge(settings, self.settings)

    def without_each(self) -> Iterator[tuple[Layer, Layer]]:
        """Each single setting that is no mapping."""
        for path in _leaves(self.settings):
            yield Group(self.where, _only(self.settings, path)), Group(self.where, _without(self.settings, path))

    def unheeded(self) -> str:
        """Names the setting and its place."""
        (path,) = _leaves(self.settings)
        return (
            f"{self.where} sets {'.'.join(path)}, which no arm has from it: the grid puts its own in its place at "
            "every point. Take it out of one of the two."
        )


@dataclass(frozen=True, slots=True)
class Value:
    """A value of an axis."""

    axis: str
    value: object

    def over(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings with the axis at the value.

        Raises:
            ConfigError: the path leads through a value that has no keys.
        """
        try:
            return set_path(settings, self.axis, self.value)
        except ConfigError as error:
            reason = str(error).removeprefix(f"Override '{self.axis}={self.value}': ")
            raise ConfigError(f"grid.{self.axis}: {reason}") from error

    def without_each(self) -> Iterator[tuple[Layer, Layer]]:
        """The value, and nothing."""
        yield self, Group(f"grid.{self.axis}", {})

    def unheeded(self) -> str:
        """Names the axis."""
        return (
            f"grid.{self.axis} sets {self.value!r}, which no arm has from it: a later axis puts its own in its "
            "place at every point. Take it out of one of the two."
        )


@dataclass(frozen=True, slots=True)
class Override:
    """An assignment ``key.path=value`` of the command line."""

    assignment: str

    def over(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings with the assignment made."""
        return override(settings, [self.assignment])

    def without_each(self) -> Iterator[tuple[Layer, Layer]]:
        """The assignment, and nothing."""
        yield self, Group(self.assignment, {})

    def unheeded(self) -> str:
        """Names the assignment."""
        return (
            f"Override '{self.assignment}' would change nothing: every arm of the ablation sets "
            f"{self.assignment.partition('=')[0]} itself. Copy the ablation's file and change it there."
        )


@dataclass(frozen=True, slots=True)
class Stack:
    """What an arm's settings are made of: the base, and layers in the order in which they go over it."""

    base: Mapping[str, Any]
    layers: tuple[Layer, ...]

    def settings(self) -> dict[str, Any]:
        """All of it."""
        result = dict(self.base)
        for layer in self.layers:
            result = layer.over(result)
        return result

    def swapped(self, at: int, layer: Layer) -> Stack:
        """With another layer in the place of one."""
        return Stack(self.base, (*self.layers[:at], layer, *self.layers[at + 1 :]))


def layer_of(axis: str, values: Axis, label: str, value: Any) -> Layer:  # noqa: ANN401 (any value of a setting)
    """A point of an axis."""
    return Group(f"grid.{axis}.{label}", value) if isinstance(values, dict) else Value(axis, value)


def check_heeded(stacks: Sequence[Stack]) -> None:
    """Refuse a setting that other layers take the place of in every arm; what some arm has from it stays.

    Raises:
        ConfigError: names the setting and what to do.
    """
    whole = [stack.settings() for stack in stacks]
    users: dict[str, list[tuple[int, int]]] = {}
    layers: dict[str, Layer] = {}
    for number, stack in enumerate(stacks):
        for at, layer in enumerate(stack.layers[:-1]):
            layers[repr(layer)] = layer
            users.setdefault(repr(layer), []).append((number, at))
    for key, layer in layers.items():
        for single, rest in layer.without_each():
            idle = all(_same(stacks[number].swapped(at, rest), whole[number]) for number, at in users[key])
            if idle and any(single.over(whole[number]) != whole[number] for number, _ in users[key]):
                raise ConfigError(single.unheeded())


def _same(stack: Stack, settings: Mapping[str, Any]) -> bool:
    try:
        return stack.settings() == settings
    except ConfigError:
        # A later layer leads into what is missing now.
        return False


def check_keys(config: AblationConfig, overrides: Iterable[str]) -> None:
    """Refuse settings that the ablation sets itself, and keys that are none of a run's.

    What a configuration that an arm starts from says of its seed and name gives way without a word.

    Raises:
        ConfigError: names the key, its place and what to use instead.
    """
    for assignment in overrides:
        key, equals, _ = assignment.partition("=")
        if not equals:
            raise ConfigError(
                f"Override '{assignment}' is not of the form key.path=value, such as objective.loss.beta=0.2."
            )
        _check_key(key, f"Override '{assignment}': ")
    for key in config.settings:
        _check_key(key, "settings.")
    for variant, settings in config.variants.items():
        for key in settings:
            if key not in (EXTENDS, RESOURCES):
                _check_key(key, f"variants.{variant}.")
    for axis, values in config.grid.items():
        if isinstance(values, list):
            _check_key(axis, "grid.")
            continue
        for label, settings in values.items():
            for key in settings:
                _check_key(key, f"grid.{axis}.{label}.")


def _check_key(path: str, where: str) -> None:
    reason = no_setting(path)
    if reason is not None:
        raise ConfigError(f"{where}{path.strip()} is nothing to vary: {reason}.")


def no_setting(path: str) -> str | None:
    """Why a dotted path is no setting that arms can differ in; None where it may be one."""
    return _NOTHING_TO_VARY.get(path.partition(".")[0].strip())


def _leaves(settings: Mapping[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*before, key))
        else:
            yield (*before, key)


def _only(settings: Mapping[str, Any], path: tuple[str, ...]) -> Settings:
    inside = settings[path[0]]
    return {path[0]: _only(inside, path[1:]) if path[1:] else inside}


def _without(settings: Mapping[str, Any], path: tuple[str, ...]) -> Settings:
    rest = {key: value for key, value in settings.items() if key != path[0]}
    # The order of keys says nothing, but stays.
    return {k: _without(v, path[1:]) if k == path[0] else rest[k] for k, v in settings.items() if k in rest or path[1:]}

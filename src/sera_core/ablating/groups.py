"""Which arms of an ablation belong together: each with its baseline, and families for the frontier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sera_core.ablating.config import AblationConfig, labels_of
from sera_core.ablating.names import check_names, ends_of, name_of, short_axes
from sera_core.errors import ConfigError, suggest

if TYPE_CHECKING:
    from sera_core.ablation import Arm


def families_of(config: AblationConfig, arms: tuple[Arm, ...]) -> dict[str, tuple[str, ...]]:
    """Family name to the names of its arms, in their order: arms that differ in the axis `frontier` alone.

    A family is called like its arms without that axis, or like the ablation where nothing else is left. Empty without
    a frontier.

    Raises:
        ConfigError: `frontier` is no axis of the grid, or may be several.
    """
    if config.frontier is None:
        return {}
    axis = _axis(config, config.frontier)
    found: dict[tuple[str | None, tuple[tuple[str, str], ...]], list[str]] = {}
    for arm in arms:
        rest = tuple((key, label) for key, label in arm.point.items() if key != axis)
        found.setdefault((arm.variant, rest), []).append(arm.name)
    names = {key: name_of(key[0], dict(key[1]), config.grid) or config.name for key in found}
    check_names([(names[key], (key[0], tuple((*each, each[1]) for each in key[1]))) for key in found])
    return {names[key]: tuple(members) for key, members in found.items()}


def _axis(config: AblationConfig, name: str) -> str:
    """The axis a name means: its path, or an end of one that no other axis has."""
    short = short_axes(config.grid)
    found = [axis for axis in config.grid if name == axis] or [axis for axis in config.grid if name in ends_of(axis)]
    if not found:
        raise ConfigError(f"frontier '{name}' is no axis of the grid. {suggest(name, {*config.grid, *short.values()})}")
    if len(found) > 1:
        either = " or ".join(short[axis] for axis in found)
        raise ConfigError(f"frontier '{name}': several axes end in it. Write {either}.")
    return found[0]


def baselines_of(config: AblationConfig, arms: tuple[Arm, ...]) -> dict[str, str]:
    """Arm to compared arm: another variant at the same grid point, or another point of the same variant.

    Raises:
        ConfigError: `baseline` is no variant and no point of the grid, or may be several points.
    """
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
    """(axis, label) of a point written ``key=label``; the key is an axis, or an end of its path that no other has."""
    short = short_axes(config.grid)
    points = [(axis, label) for axis, values in config.grid.items() for _, label, _ in labels_of(axis, values)]
    for axis, label in points:
        if text == f"{axis}={label}":
            return axis, label
    found = [at for at in points if text in {f"{end}={at[1]}" for end in ends_of(at[0])}]
    if not found:
        known = [*config.variants, *(f"{short[axis]}={label}" for axis, label in points)]
        raise ConfigError(f"baseline '{text}' is no variant and no point of the grid. {suggest(text, known)}")
    end = text.removesuffix(f"={found[0][1]}")
    if sum(end in ends_of(axis) for axis in config.grid) > 1:
        either = " or ".join(f"{short[axis]}={label}" for axis, label in found)
        raise ConfigError(f"baseline '{text}': several axes end in '{end}'. Write {either}.")
    return found[0]

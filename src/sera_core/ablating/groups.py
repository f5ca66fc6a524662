"""Which arms of an ablation belong together: each with its baseline, and families for the frontier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sera_core.ablating.config import AblationConfig, labels_of, name_of
from sera_core.errors import ConfigError, suggest

if TYPE_CHECKING:
    from sera_core.ablation import Arm


def families_of(config: AblationConfig, arms: tuple[Arm, ...]) -> dict[str, tuple[str, ...]]:
    """Family name to the names of its arms, in their order: arms that differ in the axis `frontier` alone.

    A family is called like its arms without that axis, or like the ablation where nothing else is left. Empty without
    a frontier.

    Raises:
        ConfigError: `frontier` is no axis of the grid.
    """
    if config.frontier is None:
        return {}
    axis = _axis(config, config.frontier)
    found: dict[str, list[str]] = {}
    for arm in arms:
        rest = {key: label for key, label in arm.point.items() if key != axis}
        found.setdefault(name_of(arm.variant, rest) or config.name, []).append(arm.name)
    return {name: tuple(members) for name, members in found.items()}


def _axis(config: AblationConfig, name: str) -> str:
    """The axis a name means: its key, or the last part of a dotted one."""
    short = {key.rpartition(".")[2]: key for key in config.grid}
    if name not in config.grid and name not in short:
        raise ConfigError(f"frontier '{name}' is no axis of the grid. {suggest(name, config.grid)}")
    return name if name in config.grid else short[name]


def baselines_of(config: AblationConfig, arms: tuple[Arm, ...]) -> dict[str, str]:
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
        for _, label, _ in labels_of(axis, values)
        for key in (axis, axis.rpartition(".")[2])
    }
    if text not in points:
        raise ConfigError(
            f"baseline '{text}' is no variant and no point of the grid. {suggest(text, [*config.variants, *points])}"
        )
    return points[text]

"""Builds the plugin manager: discover, check, register. A function, so that nothing is shared between callers."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from importlib.metadata import EntryPoint, entry_points

import pluggy

from sera_core import hookspecs
from sera_core.builtin import plugin as builtin_plugin
from sera_core.errors import PluginLoadError, suggest
from sera_core.hookspecs import PROJECT

BUILTIN = "builtin"
ALLOW_LIST = "SERA_PLUGINS"


def discover() -> list[EntryPoint]:
    """Installed plugins: entry points of group `sera_core`, sorted by distribution and name.

    Raises:
        PluginLoadError: two distributions use one plugin name.
    """
    found = sorted(entry_points(group=PROJECT), key=lambda entry: (distribution_of(entry)[0], entry.name))
    seen: dict[str, EntryPoint] = {}
    for entry in found:
        other = seen.setdefault(entry.name, entry)
        if other is not entry:
            raise PluginLoadError(
                f"Plugin name '{entry.name}' is used by two distributions, {distribution_of(other)[0]} and "
                f"{distribution_of(entry)[0]}. Uninstall one of them."
            )
        if entry.name == BUILTIN:
            raise PluginLoadError(
                f"Distribution {distribution_of(entry)[0]} takes the reserved plugin name '{BUILTIN}'."
            )
    return found


def distribution_of(entry: EntryPoint) -> tuple[str, str]:
    """(distribution name, version) of an entry point; ('unknown', '0') where the metadata is gone."""
    return (entry.dist.name, entry.dist.version) if entry.dist is not None else ("unknown", "0")


def allowed_by_environment() -> frozenset[str] | None:
    """The allow-list in SERA_PLUGINS (comma separated), or None when the variable is unset: everything is loaded."""
    value = os.environ.get(ALLOW_LIST)
    return None if value is None else frozenset(part.strip() for part in value.split(",") if part.strip())


def build_manager(
    allow: Collection[str] | None = None, extra: Sequence[tuple[str, object]] = ()
) -> pluggy.PluginManager:
    """A fresh plugin manager with the built-in plugin, the installed ones and `extra` (name, plugin object).

    Args:
        allow: names of installed plugins to load; None reads SERA_PLUGINS, and loads all when that is unset.
        extra: plugin objects to register beside them, for tests and notebooks.

    Raises:
        PluginLoadError: a plugin fails to import, implements an unknown hook, or an allowed name is not installed.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(builtin_plugin, name=BUILTIN)
    for entry in _chosen(discover(), allowed_by_environment() if allow is None else allow):
        manager.register(_load(entry), name=entry.name)
    for name, plugin in extra:
        manager.register(plugin, name=name)
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginLoadError(
            f"A plugin implements a hook Sera does not have: {error}. See `sera plugins --hooks`."
        ) from error
    return manager


def _chosen(found: list[EntryPoint], allow: Collection[str] | None) -> list[EntryPoint]:
    if allow is None:
        return found
    names = {entry.name for entry in found}
    for name in sorted(set(allow) - names - {BUILTIN}):
        raise PluginLoadError(f"{ALLOW_LIST} names plugin '{name}', which is not installed. {suggest(name, names)}")
    return [entry for entry in found if entry.name in allow]


def _load(entry: EntryPoint) -> object:
    try:
        return entry.load()
    # A plugin's import can fail in any way; whatever happens, the user must learn which distribution to fix.
    except Exception as error:
        name, version = distribution_of(entry)
        raise PluginLoadError(
            f"Plugin '{entry.name}' of {name} {version} could not be imported: {type(error).__name__}: {error}. "
            f"Reinstall or uninstall {name}, or leave it out with {ALLOW_LIST}."
        ) from error

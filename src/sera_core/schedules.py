"""Where values by iteration may stand, and how many of them a run has a use for."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from sera_core.configfile import BY_ITERATION
from sera_core.errors import ConfigError

# Sections whose values may differ between iterations.
_SCHEDULED = frozenset({"offline", "generated", "objective", "training"})


def check_schedules(settings: Mapping[str, Any], iterations: int) -> None:
    """Raise ConfigError for a by_iteration in a section that has none, or with more entries than `iterations`.

    The second names every such list, and the arguments that would shorten them.
    """
    for section, value in settings.items():
        if section not in _SCHEDULED and next(_schedules(value), None) is not None:
            raise ConfigError(
                f"by_iteration is not possible in '{section}'. It may stand in {', '.join(sorted(_SCHEDULED))}."
            )
    long = {path: entries for path, entries in _schedules(settings) if len(entries) > iterations}
    if long:
        found = ", ".join(f"{path}: by_iteration has {len(entries)} entries" for path, entries in long.items())
        shorter = " ".join(_argument(path, entries[:iterations]) for path, entries in long.items())
        raise ConfigError(
            f"{found} for loop.iterations = {iterations}; the rest would never be used. Shorten with {shorter}, or "
            "raise loop.iterations."
        )


def _schedules(raw: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, list[Any]]]:
    """(dotted path, entries) of every by_iteration in `raw`; what is no list has no entries."""
    if isinstance(raw, list):
        raw = dict(enumerate(raw))
    if not isinstance(raw, dict):
        return
    if BY_ITERATION in raw:
        entries = raw[BY_ITERATION]
        yield ".".join(path), entries if isinstance(entries, list) else []
    for key, value in raw.items():
        yield from _schedules(value, (*path, str(key)))


def _argument(path: str, entries: list[Any]) -> str:
    """The command-line argument that sets the by_iteration at `path` to `entries`."""
    value = yaml.safe_dump(
        {BY_ITERATION: entries}, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6
    )
    return shlex.quote(f"{path}={value.strip()}")

"""What `sera describe` shows of a component."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from sera_core.catalog import Entry


def description(entry: Entry) -> dict[str, Any]:
    """Documentation, options with types and defaults, provenance; for sources also their recommended settings."""
    found: dict[str, Any] = {
        "role": entry.role,
        "name": entry.name,
        "provenance": entry.provenance,
        "documentation": inspect.cleandoc(entry.factory.__doc__ or ""),
        "options": [_option(field) for field in dataclasses.fields(entry.factory) if field.init],
    }
    for key in ("defaults", "component_defaults"):
        if hasattr(entry.factory, key):
            found[key] = dict(getattr(entry.factory, key))
    return found


def _option(field: dataclasses.Field[Any]) -> dict[str, str]:
    if field.default is not dataclasses.MISSING:
        default = repr(field.default)
    elif field.default_factory is not dataclasses.MISSING:
        default = repr(field.default_factory())
    else:
        default = "required"
    kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
    return {"name": field.name, "type": kind, "default": default}

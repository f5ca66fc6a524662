"""Options to components: pydantic's reading of their annotations, in which truth values and numbers do not mix."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from pydantic_core import SchemaValidator

_NUMBERS = frozenset({"float", "int"})


def built(factory: type[Any], options: dict[str, Any]) -> Any:  # noqa: ANN401
    """A component of class `factory` from `options`.

    Numbers may be written as text, because YAML reads ``1e-5`` as text. But true is no number, and neither a number
    nor ``"yes"`` is true: a radius of true would be one of 1.

    Raises:
        pydantic.ValidationError: an option of the wrong type. Whatever the component raises.
    """
    return SchemaValidator(_strict_about_bool(TypeAdapter(factory).core_schema)).validate_python(options)


def _strict_about_bool(schema: Any) -> Any:  # noqa: ANN401  # schemas are nested dictionaries and lists
    if isinstance(schema, list | tuple):
        return type(schema)(_strict_about_bool(part) for part in schema)
    if not isinstance(schema, dict):
        return schema
    inner = {key: _strict_about_bool(part) for key, part in schema.items()}
    if schema.get("type") == "bool":
        return {**inner, "strict": True}
    if schema.get("type") in _NUMBERS:
        return {"type": "function-before", "function": {"type": "no-info", "function": _no_bool}, "schema": inner}
    return inner


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value

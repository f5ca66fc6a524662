"""docs/configuration.md states every key of every section with its default."""

import types
import typing

import pytest
from doc_pages import rows, section
from pydantic import BaseModel

from sera_core.config import ComponentSpec, RunConfig

PAGE = "docs/configuration.md"


def inner(annotation):
    """The section a field holds, or None."""
    options = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    found = [o for o in (annotation, *options) if isinstance(o, type) and issubclass(o, BaseModel)]
    return next((model for model in found if model is not ComponentSpec), None)


def sections(model=RunConfig, heading="Top level", path=""):
    yield heading, model
    for name, field in model.model_fields.items():
        below = inner(field.annotation)
        if below is not None:
            where = f"{path}.{name}".lstrip(".")
            yield from sections(below, where, where)


def stated(field):
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "null"
    if isinstance(value, ComponentSpec):
        return value.name
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, bool):
        return str(value).lower()
    return '""' if value == "" else str(value)


@pytest.mark.parametrize(("heading", "model"), list(sections()), ids=lambda value: str(value))
def test_every_key_is_documented_with_its_default(heading, model):
    table = {row[0].strip("`"): row[1].strip("`") for row in rows(section(PAGE, heading))}
    assert table == {name: stated(field) for name, field in model.model_fields.items()}


@pytest.mark.parametrize(("heading", "model"), list(sections()), ids=lambda value: str(value))
def test_every_key_has_a_meaning(heading, model):
    assert all(len(row[2]) > 10 for row in rows(section(PAGE, heading)))


def test_documented_training_fields_may_be_set():
    from sera_core.train.arguments import OWNED

    named = {name for name in OWNED if f"`{name}`" in section(PAGE, "training")}
    assert named == {"seed"}

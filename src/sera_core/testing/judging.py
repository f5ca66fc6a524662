"""Contracts of judges and sources."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, get_args

import numpy as np

from sera_core.protocols import ROLES, Judge, Provides, Source, Verdict
from sera_core.testing import samples
from sera_core.testing.contract import Property, require

OPPOSITE = {"win": "loss", "loss": "win", "tie": "tie", "abstain": "abstain"}


def _supported(call: Callable[[], Any]) -> Any:  # noqa: ANN401
    """The result, or None where the judge says that it cannot do this (NotImplementedError)."""
    try:
        return call()
    except NotImplementedError:
        return None


def _verdicts(judge: Judge) -> tuple[Verdict, ...] | None:
    verdicts: tuple[Verdict, ...] | None = _supported(
        lambda: judge.compare(samples.responses(), samples.other_responses())
    )
    return verdicts


def _judges(judge: Judge) -> None:
    grades = _supported(lambda: judge.grade(samples.responses()))
    require(grades is not None or _verdicts(judge) is not None, "a judge must grade, or compare, or both")


def _verdicts_valid(judge: Judge) -> None:
    verdicts = _verdicts(judge)
    if verdicts is not None:
        require(len(verdicts) == samples.COUNT, f"expected {samples.COUNT} verdicts, got {len(verdicts)}")
        require(set(verdicts) <= set(get_args(Verdict)), f"a verdict is win, tie, loss or abstain, got {verdicts}")


def _antisymmetric(judge: Judge) -> None:
    straight = _verdicts(judge)
    if straight is None:
        return
    swapped = judge.compare(samples.other_responses(), samples.responses())
    expected = tuple(OPPOSITE[verdict] for verdict in straight)
    require(tuple(swapped) == expected, f"verdicts {straight} swapped must be {expected}, got {swapped}")
    itself = judge.compare(samples.responses(), samples.responses())
    require(set(itself) <= {"tie", "abstain"}, f"a response against itself must tie or abstain, got {itself}")


def _grades(judge: Judge) -> None:
    responses = samples.responses()
    grades = _supported(lambda: judge.grade(responses))
    if grades is None:
        return
    require(isinstance(grades, np.ndarray) and grades.dtype == np.float64, f"grades must be float64, got {grades!r}")
    require(grades.shape == (samples.COUNT,), f"expected shape ({samples.COUNT},), got {grades.shape}")
    require(np.isfinite(grades).all(), f"grades must be finite, got {grades}")
    require(np.array_equal(judge.grade(responses[::-1]), grades[::-1]), "grades depend on the order of responses")


def _source_attributes(source: Source) -> None:
    require(isinstance(source.provides, Provides), f"provides must be a Provides, got {source.provides!r}")
    for name in ("defaults", "component_defaults"):
        value = getattr(source, name)
        require(isinstance(value, Mapping), f"{name} must be a mapping, got {value!r}")
        _require_plain(name, value)


def _require_plain(name: str, value: Mapping[str, Any]) -> None:
    plain = {key: dict(v) if isinstance(v, Mapping) else v for key, v in value.items()}
    try:
        json.dumps(plain)
    except TypeError as error:
        require(False, f"{name} goes into the manifest and must hold plain values: {error}")


def _source_defaults(source: Source) -> None:
    for key, options in source.component_defaults.items():
        role, separator, name = key.partition(":")
        require(role in ROLES and separator and name, f"component_defaults: expected 'role:name', got '{key}'")
        require(
            isinstance(options, Mapping), f"component_defaults['{key}'] must map options to values, got {options!r}"
        )


def _source_methods(source: Source) -> None:
    require(callable(getattr(source, "load", None)), "a source needs a method load(seed)")
    has_policy = callable(getattr(source, "policy", None))
    require(has_policy or not source.provides.policy, "provides.policy is True, but there is no method policy")


JUDGE = (
    Property("grades-or-compares", _judges),
    Property("verdicts", _verdicts_valid),
    Property("antisymmetric", _antisymmetric),
    Property("grades", _grades),
)
SOURCE = (
    Property("attributes", _source_attributes),
    Property("component-defaults", _source_defaults),
    Property("methods", _source_methods),
)

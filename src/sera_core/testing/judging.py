"""Contracts of judges and sources."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, get_args

import numpy as np

from sera_core.protocols import ROLES, Accounting, AsksModel, Judge, Provides, Source, Verdict
from sera_core.testing import samples
from sera_core.testing.asking import FakeAsker
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


def _bound(judge: object) -> Any:  # noqa: ANN401
    """The judge, with a model that is none where it asks one."""
    return judge.bind(FakeAsker()) if isinstance(judge, AsksModel) else judge


def _judges(component: Judge) -> None:
    judge = _bound(component)
    grades = _supported(lambda: judge.grade(samples.responses()))
    require(grades is not None or _verdicts(judge) is not None, "a judge must grade, or compare, or both")


def _verdicts_valid(component: Judge) -> None:
    verdicts = _verdicts(_bound(component))
    if verdicts is not None:
        require(len(verdicts) == samples.COUNT, f"expected {samples.COUNT} verdicts, got {len(verdicts)}")
        require(set(verdicts) <= set(get_args(Verdict)), f"a verdict is win, tie, loss or abstain, got {verdicts}")


def _antisymmetric(component: Judge) -> None:
    judge = _bound(component)
    straight = _verdicts(judge)
    if straight is None:
        return
    swapped = judge.compare(samples.other_responses(), samples.responses())
    expected = tuple(OPPOSITE[verdict] for verdict in straight)
    require(tuple(swapped) == expected, f"verdicts {straight} swapped must be {expected}, got {swapped}")
    itself = judge.compare(samples.responses(), samples.responses())
    require(set(itself) <= {"tie", "abstain"}, f"a response against itself must tie or abstain, got {itself}")


def _grades(component: Judge) -> None:
    judge = _bound(component)
    responses = samples.responses()
    grades = _supported(lambda: judge.grade(responses))
    if grades is None:
        return
    require(isinstance(grades, np.ndarray) and grades.dtype == np.float64, f"grades must be float64, got {grades!r}")
    require(grades.shape == (samples.COUNT,), f"expected shape ({samples.COUNT},), got {grades.shape}")
    asks: object = component
    allowed = ~np.isinf(grades) if isinstance(asks, AsksModel) else np.isfinite(grades)
    require(allowed.all(), f"grades must be finite, got {grades}; only a judge that asks a model may give nan")
    backwards = judge.grade(responses[::-1])
    require(np.array_equal(backwards, grades[::-1], equal_nan=True), "grades depend on the order of responses")


def _names_a_model(component: Any) -> None:  # noqa: ANN401
    require(isinstance(component.model, str) and component.model, f"model must name one, got {component.model!r}")
    judge = component.bind(FakeAsker())
    require(judge.needs == component.needs, f"bound, it needs {judge.needs} instead of {component.needs}")


def _accounts(component: Judge) -> None:
    judge: object = _bound(component)
    if not isinstance(judge, Accounting):
        return
    for figures in (judge.account(), _after_judging(judge)):
        plain = {name: value for name, value in figures.items() if isinstance(name, str) and isinstance(value, float)}
        require(len(plain) == len(figures), f"figures must be floats by name, got {figures}")
        require(all(np.isfinite(value) for value in plain.values()), f"figures must be finite, got {figures}")


def _after_judging(judge: Any) -> Mapping[str, float]:  # noqa: ANN401
    _supported(lambda: judge.grade(samples.responses()))
    _verdicts(judge)
    figures: Mapping[str, float] = judge.account()
    return figures


def _asks(factory: type[Any]) -> bool:
    return hasattr(factory, "bind")


def _keeps_count(factory: type[Any]) -> bool:
    return _asks(factory) or hasattr(factory, "account")


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
    Property("names-a-model", _names_a_model, _asks),
    Property("account", _accounts, _keeps_count),
)
SOURCE = (
    Property("attributes", _source_attributes),
    Property("component-defaults", _source_defaults),
    Property("methods", _source_methods),
)

"""Turns a catalog into contract checks: one per component and property. Imports no torch until checks are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sera_core.errors import ConfigError, suggest
from sera_core.protocols import ROLES

if TYPE_CHECKING:
    from sera_core.catalog import Catalog, Entry


class ContractError(AssertionError):
    """A component does not keep its role's contract; the message says what came instead."""


@dataclass(frozen=True)
class Property:
    """One line of a role's contract.

    `body` gets a component and raises `ContractError` where it breaks the line. `applies` gets the factory and
    says whether the line concerns it.
    """

    name: str
    body: Callable[[Any], None]
    applies: Callable[[type[Any]], bool] = lambda factory: True  # noqa: ARG005


@dataclass(frozen=True)
class Check:
    """One property of one component, to be called in a test. ``str`` gives ``role:name:property``."""

    role: str
    name: str
    property: str
    factory: type[Any] = field(repr=False)
    body: Callable[[Any], None] = field(repr=False)

    def __call__(self) -> None:
        """Construct the component and check it.

        Raises:
            ContractError: the component breaks the contract.
        """
        self.body(example_of(self.factory))

    def __str__(self) -> str:
        return f"{self.role}:{self.name}:{self.property}"


def require(condition: object, message: str) -> None:
    """Raise `ContractError` with `message` unless `condition` holds."""
    if not condition:
        raise ContractError(message)


def example_of(factory: type[Any]) -> Any:  # noqa: ANN401
    """A component from its ``example()`` where it has one, else from its defaults.

    Raises:
        ContractError: neither is possible.
    """
    if hasattr(factory, "example"):
        component = factory.example()
        require(isinstance(component, factory), f"{factory.__name__}.example() returned {component!r}")
        return component
    try:
        return factory()
    except (TypeError, ConfigError) as error:
        raise ContractError(
            f"{factory.__name__}() cannot be constructed with defaults ({error}): give every option a default or add "
            "a classmethod example() that returns a valid component."
        ) from error


def properties() -> Mapping[str, tuple[Property, ...]]:
    """The contract of every role: role -> properties, common ones first."""
    from sera_core.testing import common, curation, generation, judging, objectives, training

    own: Mapping[str, tuple[Property, ...]] = {
        "scorer": curation.SCORER,
        "selector": curation.SELECTOR,
        "labeler": generation.LABELER,
        "objective": objectives.OBJECTIVE,
        "transform": training.TRANSFORM,
        "smoother": training.SMOOTHER,
        "reweighter": training.REWEIGHTER,
        "generator": generation.GENERATOR,
        "judge": judging.JUDGE,
        "source": judging.SOURCE,
    }
    return {role: common.COMMON + own[role] for role in ROLES}


def contract_checks(catalog: Catalog, distribution: str | None = None) -> list[Check]:
    """Every check that concerns the registered components, in catalog order; never empty.

    Args:
        catalog: the components.
        distribution: only components of this distribution; all when None.

    Raises:
        ConfigError: no component is left to check, so that a test over the result cannot pass by being empty.
    """
    entries = [catalog.entry(role, name) for role in ROLES for name in catalog.names(role)]
    chosen = [entry for entry in entries if distribution is None or entry.distribution == distribution]
    if not chosen:
        known = {entry.distribution for entry in entries}
        raise ConfigError(
            f"No component of distribution '{distribution}' is registered, so there is nothing to check. "
            f"{suggest(str(distribution), known)} Install it, and see whether its entry point is in group sera_core."
        )
    contract = properties()
    return [check for entry in chosen for check in checks_of(entry, contract[entry.role])]


def checks_of(entry: Entry, contract: tuple[Property, ...]) -> list[Check]:
    """The checks of one component: each property that applies to it."""
    return [
        Check(entry.role, entry.name, line.name, entry.factory, line.body)
        for line in contract
        if line.applies(entry.factory)
    ]

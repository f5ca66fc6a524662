"""What every component keeps, whatever its role."""

from __future__ import annotations

import json
from typing import Any

from sera_core.protocols import Needs
from sera_core.testing.contract import Property, example_of, require


def _frozen(component: Any) -> None:  # noqa: ANN401
    factory = type(component)
    parameters = getattr(factory, "__dataclass_params__", None)
    require(parameters is not None, f"{factory.__name__} is not a dataclass, so its options cannot be read")
    require(parameters is not None and parameters.frozen, f"{factory.__name__} is not frozen: use frozen=True")


def _documented(component: Any) -> None:  # noqa: ANN401
    factory = type(component)
    text = factory.__doc__ or ""
    # A dataclass without a docstring gets its own signature as one.
    generated = text.startswith(f"{factory.__name__}(")
    require(text.strip() and not generated, f"{factory.__name__} has no docstring of its own")


def _constructible(component: Any) -> None:  # noqa: ANN401
    again = example_of(type(component))
    require(again == component, f"two constructions with equal options differ: {component!r} and {again!r}")


def _states_needs(component: Any) -> None:  # noqa: ANN401
    needs = getattr(component, "needs", None)
    require(isinstance(needs, Needs), f"needs must be a Needs, got {needs!r}")


def _state_round_trip(component: Any) -> None:  # noqa: ANN401
    state = component.state_dict()
    through_json = json.loads(json.dumps(state))
    other = example_of(type(component))
    other.load_state_dict(through_json)
    require(other.state_dict() == state, f"state {state!r} came back as {other.state_dict()!r}")


def _is_stateful(factory: type[Any]) -> bool:
    return hasattr(factory, "state_dict") or hasattr(factory, "load_state_dict")


COMMON = (
    Property("constructible", _constructible),
    Property("frozen-dataclass", _frozen),
    Property("documented", _documented),
    Property("states-needs", _states_needs),
    Property("state-round-trip", _state_round_trip, _is_stateful),
)

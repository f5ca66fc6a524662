"""From hooks to one frozen table: (role, name) -> factory and where it came from; builds components from specs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any

import pluggy
from pydantic import TypeAdapter, ValidationError

from sera_core import __version__
from sera_core.errors import ConfigError, PluginLoadError, suggest
from sera_core.hookspecs import PROJECT
from sera_core.host import BUILTIN, build_manager, distribution_of
from sera_core.protocols import ROLES

# Names that other distributions of this project supply, so that a missing plugin can be named.
PROVIDED_ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        "irm": "sera-plugin-irm",
        "wasserstein": "sera-plugin-dro",
        "wasserstein_discrete": "sera-plugin-dro",
        "kl": "sera-plugin-dro",
        "chi2": "sera-plugin-dro",
        "cvar": "sera-plugin-dro",
        "dr_dpo": "sera-plugin-dro",
        "label_flip": "sera-plugin-dro",
    }
)

# What a value should have been, by the start of pydantic's name for the failure.
_EXPECTED: Mapping[str, str] = MappingProxyType(
    {
        "int_": "a whole number",
        "float_": "a number",
        "bool_": "true or false",
        "string_type": "text",
        "list_": "a list",
        "dict_": "a mapping (key: value)",
        "model_": "a mapping (key: value)",
        "too_short": "a list with at least one entry",
        "string_pattern": "letters, digits, '.', '_' and '-', beginning with a letter or digit",
    }
)
_UNION_TAGS = frozenset({"bool", "float", "int", "str"})
_LONGEST_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered component: its factory (a frozen dataclass) and the distribution that supplies it."""

    role: str
    name: str
    factory: type[Any]
    plugin: str
    distribution: str
    version: str

    @property
    def provenance(self) -> str:
        """``name@distribution==version``, as the manifest records it."""
        return f"{self.name}@{self.distribution}=={self.version}"

    @property
    def summary(self) -> str:
        """First line of the factory's docstring."""
        return (self.factory.__doc__ or "").strip().partition("\n")[0]


class Catalog:
    """All components by role and name. Immutable after construction."""

    def __init__(self, entries: Mapping[tuple[str, str], Entry]) -> None:
        self._entries = MappingProxyType(dict(sorted(entries.items())))

    @classmethod
    def from_manager(cls, manager: pluggy.PluginManager) -> Catalog:
        """Collect every registration hook.

        Raises:
            PluginLoadError: two plugins register one name in one role, or a factory is not a frozen dataclass.
        """
        origins = {entry.name: distribution_of(entry) for entry in entry_points(group=PROJECT)}
        origins[BUILTIN] = ("sera-core", __version__)
        entries: dict[tuple[str, str], Entry] = {}
        for role in ROLES:
            for implementation in getattr(manager.hook, f"sera_register_{role}s").get_hookimpls():
                distribution, version = origins.get(implementation.plugin_name, ("unknown", "0"))
                for name, factory in implementation.function().items():
                    entry = Entry(role, name, factory, implementation.plugin_name, distribution, version)
                    _add(entries, entry)
        return cls(entries)

    def entries(self) -> tuple[Entry, ...]:
        """Every entry, sorted by role and name."""
        return tuple(self._entries.values())

    def names(self, role: str) -> tuple[str, ...]:
        """Sorted names registered in a role."""
        return tuple(name for known, name in self._entries if known == role)

    def entry(self, role: str, name: str) -> Entry:
        """The entry of a component.

        Raises:
            ConfigError: unknown role or name; suggests close names and the distribution that supplies the name.
        """
        if role not in ROLES:
            raise ConfigError(f"Unknown role '{role}'. {suggest(role, ROLES)}")
        found = self._entries.get((role, name))
        if found is None:
            remedy = PROVIDED_ELSEWHERE.get(name)
            install = f" '{name}' is provided by {remedy}: pip install {remedy}." if remedy else ""
            raise ConfigError(f"Unknown {role} '{name}'.{install} {suggest(name, self.names(role))}")
        return found

    def build(self, role: str, name: str, options: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401
        """Construct a component from validated options.

        Raises:
            ConfigError: unknown name or option, wrong type, or a value the component refuses.
        """
        entry = self.entry(role, name)
        given = dict(options or {})
        fields = [field.name for field in dataclasses.fields(entry.factory) if field.init]
        for option in given:
            if option not in fields:
                raise ConfigError(f"{role} '{name}' has no option '{option}'. {suggest(option, fields)}")
        try:
            return TypeAdapter(entry.factory).validate_python(given)
        except ValidationError as error:
            raise ConfigError(f"{role} '{name}': {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """The first validation failure in words: path, what came, what was expected instead."""
    failures = [(_path(detail["loc"]), detail) for detail in error.errors()]
    path, first = failures[0]
    if first["type"] == "missing":
        return f"{path} is missing."
    expected = dict.fromkeys(_expected(detail["type"], detail["msg"]) for other, detail in failures if other == path)
    shown = repr(first["input"])
    shown = shown if len(shown) <= _LONGEST_SHOWN else shown[:_LONGEST_SHOWN] + "..."
    return f"{path or 'value'} = {shown}: {' or '.join(expected)}."


def _path(location: tuple[int | str, ...]) -> str:
    """The path in the settings, without the validation library's tags for members of a union."""
    return ".".join(str(part) for part in location if "[" not in str(part) and part not in _UNION_TAGS)


def _expected(kind: str, message: str) -> str:
    for start, words in _EXPECTED.items():
        if kind.startswith(start):
            return f"must be {words}"
    return message.removeprefix("Value error, ").replace("Input should be", "must be")


def load_catalog() -> Catalog:
    """The catalog of everything installed (SERA_PLUGINS respected)."""
    return Catalog.from_manager(build_manager())


def _add(entries: dict[tuple[str, str], Entry], entry: Entry) -> None:
    other = entries.get((entry.role, entry.name))
    if other is not None:
        raise PluginLoadError(
            f"{entry.role} '{entry.name}' is registered twice: by {other.distribution} {other.version} and by "
            f"{entry.distribution} {entry.version}. Uninstall one, or restrict plugins with SERA_PLUGINS."
        )
    parameters = getattr(entry.factory, "__dataclass_params__", None)
    if not isinstance(entry.factory, type) or parameters is None or not parameters.frozen:
        raise PluginLoadError(
            f"{entry.role} '{entry.name}' of {entry.distribution}: a factory must be a frozen dataclass, "
            f"got {entry.factory!r}."
        )
    entries[entry.role, entry.name] = entry

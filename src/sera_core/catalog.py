"""From hooks to one frozen table: (role, name) -> factory and where it came from; builds components from specs."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any

import pluggy
from pydantic import ValidationError

from sera_core import __version__
from sera_core.errors import ConfigError, PluginLoadError, suggest
from sera_core.hookspecs import PROJECT
from sera_core.host import BUILTIN, build_manager, distribution_of
from sera_core.option_types import built
from sera_core.protocols import ROLES

# Roles and names that other distributions of this project supply, so that a missing plugin can be named.
PROVIDED_ELSEWHERE: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("scorer", "irm"): "sera-plugin-irm",
        ("reweighter", "wasserstein"): "sera-plugin-dro",
        ("reweighter", "wasserstein_discrete"): "sera-plugin-dro",
        ("reweighter", "kl"): "sera-plugin-dro",
        ("reweighter", "chi2"): "sera-plugin-dro",
        ("reweighter", "cvar"): "sera-plugin-dro",
        ("reweighter", "dr_dpo"): "sera-plugin-dro",
        ("smoother", "label_flip"): "sera-plugin-dro",
        ("scorer", "direct_judgment"): "sera-plugin-spa",
        ("labeler", "direct_judgment"): "sera-plugin-spa",
        ("smoother", "spa"): "sera-plugin-spa",
        ("smoother", "spa_official_code"): "sera-plugin-spa",
        ("transform", "self_refinement"): "sera-plugin-srdpo",
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
        "dataclass_": "a mapping (key: value)",
        "too_short": "a list with at least one entry",
        "string_pattern": "letters, digits, '.', '_' and '-', beginning with a letter or digit",
    }
)
_UNION_TAGS = frozenset({"bool", "float", "int", "str"})
_UNKNOWN_KEY = frozenset({"extra_forbidden", "unexpected_keyword_argument"})
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
            ConfigError: unknown role or name; suggests close names, and names the distribution that supplies it or
                the other role it has.
        """
        if role not in ROLES:
            raise ConfigError(f"Unknown role '{role}'. {suggest(role, ROLES)}")
        found = self._entries.get((role, name))
        if found is None:
            raise ConfigError(
                f"Unknown {role} '{name}'.{self._elsewhere(role, name)} {suggest(name, self.names(role))}"
            )
        return found

    def _elsewhere(self, role: str, name: str) -> str:
        """A sentence on where `name` is to be had: in a distribution, else in another role; or nothing."""
        remedy = PROVIDED_ELSEWHERE.get((role, name))
        if remedy is not None:
            return f" '{name}' is provided by {remedy}: pip install {remedy}."
        roles = [other for other in ROLES if (other, name) in {*self._entries, *PROVIDED_ELSEWHERE}]
        return f" '{name}' is {' and '.join(map(_a, roles))}, not {_a(role)}." if roles else ""

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
        owner = f"{role} '{name}'"
        try:
            return built(entry.factory, given)
        except ValidationError as error:
            raise ConfigError(f"{owner}: {first_problem(error)}") from error
        except ConfigError as error:
            if owner in str(error):
                raise
            # A part of an option, such as a schedule, does not know whose it is.
            raise ConfigError(f"{owner}: {error}") from error


def first_problem(error: ValidationError) -> str:
    """The first validation failure in words: path, what came, what was expected instead.

    Where an option may be a mapping and one was given, the failure inside it counts, not that it is nothing else.
    """
    details = error.errors()
    unions = {detail["loc"][:at] for detail in details for at, part in enumerate(detail["loc"]) if _is_tag(part)}
    failures = [(_path(detail["loc"], unions), detail) for detail in details]
    path, first = failures[0]
    if isinstance(first["input"], Mapping):
        failures = [failure for failure in failures if failure[0].startswith(f"{path}.")] or failures
        path, first = failures[0]
    unknown = [f"{other} is unknown" for other, detail in failures if detail["type"] in _UNKNOWN_KEY]
    missing = [f"{other} is missing" for other, detail in failures if detail["type"] == "missing"]
    if first["type"] in {"missing", *_UNKNOWN_KEY}:
        return "; ".join((*unknown, *missing)) + "."
    expected = dict.fromkeys(_expected(detail["type"], detail["msg"]) for other, detail in failures if other == path)
    shown = repr(first["input"])
    shown = shown if len(shown) <= _LONGEST_SHOWN else shown[:_LONGEST_SHOWN] + "..."
    return f"{path or 'value'} = {shown}: {' or '.join(expected)}."


def _path(location: tuple[int | str, ...], unions: Collection[tuple[int | str, ...]]) -> str:
    """The path in the settings, without the validation library's tags for members of the `unions` at these paths."""
    return ".".join(str(part) for at, part in enumerate(location) if location[:at] not in unions)


def _is_tag(part: int | str) -> bool:
    return "[" in str(part) or part in _UNION_TAGS


def _a(role: str) -> str:
    return f"an {role}" if role[0] in "aeiou" else f"a {role}"


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

"""Discovery, registration, collisions, provenance, building components."""

import dataclasses
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from sera_core import host
from sera_core.catalog import PROVIDED_ELSEWHERE, Catalog, load_catalog
from sera_core.errors import ConfigError, PluginLoadError
from sera_core.hookspecs import hookimpl
from sera_core.host import build_manager
from sera_core.protocols import ROLES, Needs


@dataclass(frozen=True)
class Mine:
    """A scorer of a test."""

    strength: float = 1.0
    needs: Needs = dataclasses.field(default=Needs(), init=False)


class Plugin:
    def __init__(self, **scorers):
        self.scorers = scorers

    @hookimpl
    def sera_register_scorers(self):
        return self.scorers


def catalog_with(**scorers):
    return Catalog.from_manager(build_manager(extra=[("mine", Plugin(**scorers))]))


def test_builtins_are_registered_in_every_role_but_transform():
    catalog = load_catalog()
    builtin = {entry.role for entry in catalog.entries() if entry.distribution == "sera-core"}
    assert set(ROLES) - builtin == {"transform"}
    assert catalog.names("objective") == ("dpo", "hinge", "ipo", "orpo", "simpo")
    assert catalog.entry("objective", "dpo").provenance.startswith("dpo@sera-core==")
    assert catalog.entry("scorer", "irm").distribution == "sera-plugin-irm"


def test_a_registered_component_is_built_from_options():
    built = catalog_with(mine=Mine).build("scorer", "mine", {"strength": "2"})
    assert built.strength == 2.0


def test_unknown_names_and_options_suggest():
    catalog = catalog_with(mine=Mine)
    with pytest.raises(ConfigError, match="Unknown role 'scorers'. Did you mean 'scorer'"):
        catalog.entry("scorers", "mine")
    with pytest.raises(ConfigError, match="Unknown scorer 'mien'. Did you mean 'mine'"):
        catalog.build("scorer", "mien")
    with pytest.raises(ConfigError, match="has no option 'strenght'. Did you mean 'strength'"):
        catalog.build("scorer", "mine", {"strenght": 1})
    with pytest.raises(ConfigError, match="scorer 'mine': strength = 'much'"):
        catalog.build("scorer", "mine", {"strength": "much"})


@pytest.mark.parametrize(
    ("role", "name", "distribution"),
    [
        ("scorer", "irm", "sera-plugin-irm"),
        ("reweighter", "wasserstein", "sera-plugin-dro"),
        ("reweighter", "wasserstein_discrete", "sera-plugin-dro"),
        ("reweighter", "kl", "sera-plugin-dro"),
        ("reweighter", "chi2", "sera-plugin-dro"),
        ("reweighter", "cvar", "sera-plugin-dro"),
        ("reweighter", "dr_dpo", "sera-plugin-dro"),
        ("smoother", "label_flip", "sera-plugin-dro"),
        ("labeler", "direct_judgment", "sera-plugin-spa"),
        ("transform", "self_refinement", "sera-plugin-srdpo"),
    ],
)
def test_a_missing_plugin_is_named(monkeypatch, role, name, distribution):
    monkeypatch.setenv("SERA_PLUGINS", "")
    with pytest.raises(ConfigError, match=f"'{name}' is provided by {distribution}: pip install {distribution}\\."):
        load_catalog().entry(role, name)


def test_every_name_provided_elsewhere_is_registered_by_that_distribution():
    ours = set(PROVIDED_ELSEWHERE.values())
    entries = [entry for entry in load_catalog().entries() if entry.distribution in ours]
    found = {(entry.role, entry.name): entry.distribution for entry in entries}
    installed = set(found.values())
    assert {"sera-plugin-dro", "sera-plugin-irm"} <= installed
    assert found == {key: name for key, name in PROVIDED_ELSEWHERE.items() if name in installed}


@pytest.mark.parametrize("plugins", ["dro", ""], ids=["installed", "not installed"])
def test_a_name_in_the_wrong_role_is_told_its_own(monkeypatch, plugins):
    monkeypatch.setenv("SERA_PLUGINS", plugins)
    catalog = load_catalog()
    with pytest.raises(
        ConfigError, match="Unknown reweighter 'label_flip'. 'label_flip' is a smoother, not a rew"
    ) as told:
        catalog.entry("reweighter", "label_flip")
    assert "pip install" not in str(told.value)
    with pytest.raises(ConfigError, match="Unknown smoother 'dpo'. 'dpo' is an objective, not a smoother. Known: "):
        catalog.entry("smoother", "dpo")
    with pytest.raises(ConfigError, match="'direct_judgment' is a scorer and a labeler, not an objective"):
        catalog.entry("objective", "direct_judgment")
    with pytest.raises(ConfigError, match="^Unknown smoother 'nowhere'. Known: "):
        catalog.entry("smoother", "nowhere")


@dataclass(frozen=True)
class Inner:
    """A mapping that an option may be."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    low: float
    high: float = 1.0

    def __post_init__(self):
        if self.low < 0:
            raise ConfigError("inner: low must be >= 0.")


@dataclass(frozen=True)
class Typed:
    """A scorer with options of many types."""

    size: float | Inner | None = None
    count: int = 1
    either: bool | float = 1.0
    ends: tuple[float, float] = (0.0, 1.0)
    flag: bool = False
    anything: Any = None
    needs: Needs = dataclasses.field(default=Needs(), init=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": {"low": 0, "hihg": 2}}, "size.hihg is unknown."),
        ({"size": {"hihg": 2}}, "size.hihg is unknown; size.low is missing."),
        ({"size": {}}, "size.low is missing."),
        ({"size": {"low": "x"}}, "size.low = 'x': must be a number."),
        ({"size": {"low": True}}, "size.low = True: must be a number."),
        ({"size": {"low": -1}}, "inner: low must be >= 0."),
        ({"size": [1]}, "size = [1]: must be a number or must be a mapping (key: value)."),
        ({"size": True}, "size = True: must be a number or must be a mapping (key: value)."),
        ({"count": True}, "count = True: must be a number."),
        ({"ends": [0, False]}, "ends.1 = False: must be a number."),
        ({"flag": "yes"}, "flag = 'yes': must be true or false."),
        ({"flag": 1}, "flag = 1: must be true or false."),
    ],
    ids=str,
)
def test_what_is_wrong_with_an_option_is_said_of_what_was_meant(options, message):
    with pytest.raises(ConfigError) as told:
        catalog_with(typed=Typed).build("scorer", "typed", options)
    assert str(told.value) == f"scorer 'typed': {message}"


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("size", 2, 2.0),
        ("size", "1e-5", 1e-5),
        ("size", {"low": 1}, Inner(1.0)),
        ("size", None, None),
        ("count", "3", 3),
        ("either", True, True),
        ("either", 2, 2.0),
        ("ends", [0, "2"], (0.0, 2.0)),
        ("flag", True, True),
        ("anything", True, True),
    ],
)
def test_numbers_are_read_from_text_and_truth_values_kept(option, value, expected):
    found = getattr(catalog_with(typed=Typed).build("scorer", "typed", {option: value}), option)
    assert (found, type(found)) == (expected, type(expected))


def test_name_collisions_name_both_parties():
    with pytest.raises(PluginLoadError, match="scorer 'length' is registered twice: by sera-core"):
        catalog_with(length=Mine)


def test_a_factory_must_be_a_frozen_dataclass():
    class Loose:
        pass

    with pytest.raises(PluginLoadError, match="must be a frozen dataclass"):
        catalog_with(loose=Loose)


def test_registration_order_does_not_matter():
    def entries(order):
        plugins = [("a", Plugin(first=Mine)), ("b", Plugin(second=Mine))]
        catalog = Catalog.from_manager(build_manager(extra=[plugins[i] for i in order]))
        return [(e.role, e.name, e.plugin) for e in catalog.entries()]

    assert entries((0, 1)) == entries((1, 0))


def test_a_misspelt_hook_is_an_error():
    class Misspelt:
        @hookimpl
        def sera_register_scorer(self):
            return {}

    with pytest.raises(PluginLoadError, match="implements a hook Sera does not have.*sera_register_scorer"):
        build_manager(extra=[("misspelt", Misspelt())])


def _entry(name, distribution, value="json"):
    entry = EntryPoint(name=name, value=value, group="sera_core")
    vars(entry)["dist"] = SimpleNamespace(name=distribution, version="1.0")
    return entry


def test_two_distributions_may_not_share_a_plugin_name(monkeypatch):
    monkeypatch.setattr(host, "entry_points", lambda group: [_entry("x", "one"), _entry("x", "two")])
    with pytest.raises(PluginLoadError, match="used by two distributions, one and two"):
        build_manager()


def test_an_import_failure_names_the_distribution(monkeypatch):
    monkeypatch.setattr(host, "entry_points", lambda group: [_entry("x", "broken-dist", "no_such_module_anywhere")])
    with pytest.raises(PluginLoadError, match=r"'x' of broken-dist 1.0 could not be imported: ModuleNotFoundError"):
        build_manager()


def test_the_allow_list(monkeypatch):
    monkeypatch.setattr(host, "entry_points", lambda group: [_entry("good", "g"), _entry("bad", "b", "no_such_module")])
    assert build_manager(allow=["good"]).get_plugin("good") is not None
    with pytest.raises(PluginLoadError, match="names plugin 'godo', which is not installed. Did you mean 'good'"):
        build_manager(allow=["godo"])


@pytest.mark.parametrize(
    "module", ["sera_core", "sera_core.host", "sera_core.catalog", "sera_core.config", "sera_core.cli"]
)
def test_light_rooms_do_not_import_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_import_guard_can_fail():
    code = "import sys, sera_core.runner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1

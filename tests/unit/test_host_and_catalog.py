"""Discovery, registration, collisions, provenance, building components."""

import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from types import SimpleNamespace

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
    assert {role for role in ROLES if not catalog.names(role)} == {"transform"}
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
    ],
)
def test_a_missing_plugin_is_named(monkeypatch, role, name, distribution):
    monkeypatch.setenv("SERA_PLUGINS", "")
    with pytest.raises(ConfigError, match=f"'{name}' is provided by {distribution}: pip install {distribution}\\."):
        load_catalog().entry(role, name)


def test_every_name_provided_elsewhere_is_registered_by_that_distribution():
    found = {entry.name: entry.distribution for entry in load_catalog().entries() if entry.plugin in ("irm", "dro")}
    assert found == dict(PROVIDED_ELSEWHERE)


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

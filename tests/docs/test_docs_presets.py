"""Every shipped preset plans on the world and on preference data, says what it is, and stands in docs/methods.md."""

import re

import pytest
import yaml
from doc_pages import blocks, rows, section, text_of

from sera_core import configfile
from sera_core.catalog import load_catalog
from sera_core.errors import ConfigError
from sera_core.plan import make_plan

PRESETS = configfile.presets()
# Presets that ask for a model of their own, as docs/methods.md says.
ASKS = {"spa-no-seed": ("policy.model=tuned",), "spa-reward-model": ("generated.judge.model=judge",)}


@pytest.fixture(scope="module")
def catalog():
    return load_catalog()


def read(name):
    return configfile.read(PRESETS[name])


@pytest.mark.parametrize("name", PRESETS)
def test_plans_with_no_other_argument(name, catalog):
    plan = make_plan(configfile.override(read(name), ASKS.get(name, ())), catalog)
    assert plan.config.source.name == "world"
    assert plan.config.policy.model == ("tuned" if name == "spa-no-seed" else "auto")


@pytest.mark.parametrize("name", ASKS)
def test_asks_for_its_model_by_name(name, catalog):
    with pytest.raises(ConfigError, match=r"model"):
        make_plan(read(name), catalog)
    (asked,) = ASKS[name]
    key = asked.partition("=")[0]
    assert key in read(name)["description"]
    assert f"`{key}`" in section("docs/methods.md", "Presets")


@pytest.mark.parametrize("name", PRESETS)
def test_plans_on_preference_data_by_changing_source_and_policy_only(name, catalog, tmp_path):
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', encoding="utf-8")
    model = tmp_path / "model"
    model.mkdir()
    raw = configfile.override(read(name), ASKS.get(name, ()))
    raw |= {"source": {"name": "preferences", "path": str(data)}, "policy": {"model": str(model)}}
    if name == "spa-no-seed":
        raw["policy"]["base"] = "base"
    plan = make_plan(raw, catalog)
    assert plan.config.source.name == "preferences"
    assert plan.judge is None


@pytest.mark.parametrize("name", PRESETS)
def test_says_what_it_is(name):
    raw = read(name)
    assert raw["name"] == name
    assert raw["description"].endswith(".")
    assert raw["cites"]
    assert all(re.search(r"\b(19|20)\d\d\b", paper) for paper in raw["cites"])


def test_the_methods_page_lists_exactly_the_presets():
    assert {row[0].strip("`") for row in rows(section("docs/methods.md", "Presets"))} == set(PRESETS)


def test_the_methods_page_lists_exactly_the_losses_and_smoothers(catalog):
    listed = {row[0].partition(" ")[0].strip("`") for row in rows(section("docs/methods.md", "Losses"))}
    builtin = {e.name for e in catalog.entries() if e.plugin == "builtin" and e.role in ("objective", "smoother")}
    assert listed == builtin


def test_the_concepts_page_lists_the_built_in_components(catalog):
    table = {row[0]: set(re.findall(r"`(\w+)`", row[2])) for row in rows(section("docs/concepts.md", "Roles"))}
    for role, listed in table.items():
        builtin = {name for name in catalog.names(role) if catalog.entry(role, name).plugin == "builtin"}
        assert builtin <= listed <= set(catalog.names(role)), role
    assert "plugin-irm" in section("docs/concepts.md", "Roles")


@pytest.mark.parametrize("source", ["world", "preferences"])
def test_the_methods_page_states_the_recommended_settings(source, catalog):
    (block,) = [b for b in blocks("yaml") if b.mark == f"{source}-defaults"]
    factory = catalog.entry("source", source).factory
    stated = yaml.safe_load(block.text)
    assert stated.pop("training") == dict(factory.defaults["training"])
    assert stated == {key: dict(value) for key, value in factory.component_defaults.items()}


def test_the_world_page_lists_its_options_and_diagnostics(catalog):
    from sera_core.describe import description

    stated = {row[0].strip("`"): row[1].strip("`") for row in rows(section("docs/world.md", "Options"))}
    assert stated == {o["name"]: o["default"] for o in description(catalog.entry("source", "world"))["options"]}


def test_the_changelog_names_this_version():
    assert "0.1.0" in text_of("CHANGELOG.md")

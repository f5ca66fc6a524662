"""Reading, merging, overriding and scheduling configurations."""

import pytest

from sera_core import configfile
from sera_core.configfile import at_iteration, merge, override
from sera_core.errors import ConfigError


def test_merge_keeps_options_of_the_same_component():
    base = {"offline": {"selector": {"name": "top", "fraction": 0.7}}}
    assert merge(base, {"offline": {"selector": {"name": "top", "count": 3}}}) == {
        "offline": {"selector": {"name": "top", "fraction": 0.7, "count": 3}}
    }


def test_merge_replaces_a_component_of_another_name_with_its_options():
    base = {"offline": {"selector": {"name": "top", "fraction": 0.7}}}
    assert merge(base, {"offline": {"selector": "all"}}) == {"offline": {"selector": {"name": "all"}}}


def test_merge_null_removes_a_section():
    assert merge({"generated": {"samples": 4}}, {"generated": None}) == {"generated": None}


def test_merge_leaves_its_arguments_alone():
    base = {"loop": {"iterations": 1}}
    merge(base, {"loop": {"iterations": 2}})
    assert base == {"loop": {"iterations": 1}}


def test_override_into_a_bare_component_name():
    result = override({"source": "world"}, ["source.noise=0.4", "seed=3"])
    assert result == {"source": {"name": "world", "noise": 0.4}, "seed": 3}


def test_override_creates_missing_sections_and_indexes_lists():
    raw = {"objective": {"transforms": ["a", {"name": "b", "strength": 1}]}}
    result = override(raw, ["objective.transforms.1.strength=0.5", "loop.iterations=2"])
    assert result["objective"]["transforms"] == ["a", {"name": "b", "strength": 0.5}]
    assert result["loop"] == {"iterations": 2}


def test_override_into_a_bare_component_name_in_a_list():
    result = override({"objective": {"transforms": ["a", "b"]}}, ["objective.transforms.1.strength=0.5"])
    assert result["objective"]["transforms"] == ["a", {"name": "b", "strength": 0.5}]


def test_override_a_source_by_another_drops_its_options():
    result = override({"source": {"name": "world", "noise": 0.4}}, ["source=data/pairs.jsonl", "source.limit=8"])
    assert result["source"] == {"name": "data/pairs.jsonl", "limit": 8}


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("seed", "not of the form key.path=value"),
        ("=3", "not of the form key.path=value"),
        ("a=[1", "not valid YAML"),
        ("seed.deeper=1", "'deeper' is inside 3"),
        ("items.9=1", "not an index into a list of 1"),
        ("objective.transforms.0.strength=1", "not an index into a list of 0"),
    ],
)
def test_override_refusals(argument, words):
    with pytest.raises(ConfigError, match=words):
        override({"seed": 3, "items": [1]}, [argument])


def test_by_iteration_takes_the_entry_and_repeats_the_last():
    raw = {"selector": {"name": "top", "fraction": {"by_iteration": [1.0, 0.7]}}}
    assert [at_iteration(raw, t)["selector"]["fraction"] for t in (1, 2, 3)] == [1.0, 0.7, 0.7]


@pytest.mark.parametrize("bad", [{"by_iteration": []}, {"by_iteration": 3}, {"by_iteration": [1], "name": "x"}])
def test_by_iteration_refusals(bad):
    with pytest.raises(ConfigError, match="by_iteration must be the only key"):
        at_iteration({"value": bad}, 1)


def test_by_iteration_replaces_and_is_replaced_whole():
    assert merge({"a": {"x": 1}}, {"a": {"by_iteration": [1]}}) == {"a": {"by_iteration": [1]}}
    assert merge({"a": {"by_iteration": [1]}}, {"a": {"x": 1}}) == {"a": {"x": 1}}


def test_extends_a_preset_and_a_file_beside(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: sera-dpo\nname: mine\nloop: {iterations: 5}\n", encoding="utf-8")
    (tmp_path / "child.yaml").write_text("extends: mine.yaml\nseed: 7\n", encoding="utf-8")
    raw = configfile.read(tmp_path / "child.yaml")
    assert (raw["name"], raw["seed"], raw["loop"]) == ("mine", 7, {"iterations": 5})
    assert raw["offline"]["selector"] == {"name": "top", "fraction": 0.7}


def test_extends_in_a_circle(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n", encoding="utf-8")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="runs in a circle"):
        configfile.read(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "words"), [("a: [", "not valid YAML"), ("- 1\n", "must hold a mapping"), ("", "mapping")]
)
def test_unreadable_files(tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        configfile.read(path)


def test_locate_finds_presets_by_name_and_by_path():
    path = configfile.presets()["sera-dpo"]
    assert configfile.locate("sera-dpo") == path
    assert configfile.locate("configs/runs/sera-dpo.yaml").name == path.name


def test_locate_suggests():
    with pytest.raises(ConfigError, match="Did you mean 'sera-dpo'"):
        configfile.locate("sera-dop")

"""Examples in the documentation work: configurations plan, Python runs or compiles, commands exist."""

import json
import re
import shlex
import tomllib

import click
import pytest
import typer
import yaml
from doc_pages import ROOT, blocks, names

from sera_core import ablation, configfile
from sera_core.ablating.run import check_arms
from sera_core.ablation import make_ablation
from sera_core.catalog import load_catalog
from sera_core.cli import app
from sera_core.data.formats import RowOptions, text_pairs
from sera_core.errors import ConfigError
from sera_core.plan import make_plan
from sera_core.tune import make_tuning, read_choice

WHOLE = [block for block in blocks("yaml") if not (block.mark or "").endswith("-defaults")]
ABLATIONS = [block for block in WHOLE if "\nbase:" in block.text]
CONFIGS = [block for block in WHOLE if block not in ABLATIONS]
COMMANDS = [(str(block), line) for block in blocks("console") for line in block.text.splitlines()]
RUNS = [line for _, line in COMMANDS if line.startswith("sera run ")]


@pytest.fixture(scope="module")
def catalog():
    return load_catalog()


def settings(path):
    raw = configfile.read(path)
    raw.setdefault("name", path.stem)
    return raw


@pytest.mark.parametrize("block", CONFIGS, ids=str)
def test_configurations_plan(block, catalog, tmp_path):
    path = tmp_path / "example.yaml"
    path.write_text(block.text, encoding="utf-8")
    plan = make_plan(settings(path), catalog)
    assert plan.config.name == yaml.safe_load(block.text)["name"]


@pytest.mark.parametrize("block", ABLATIONS, ids=str)
def test_ablations_plan(block):
    check_arms(make_ablation(yaml.safe_load(block.text), ROOT))


@pytest.mark.parametrize("name", ablation.presets())
def test_shipped_ablations_plan_and_are_documented(name):
    check_arms(ablation.read_ablation(ablation.locate_ablation(name)))
    assert f"`{name}`" in (ROOT / "docs" / "ablations.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_compiles(block):
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("page", sorted({block.page for block in blocks("python") if block.mark == "run"}))
def test_marked_python_runs(page, monkeypatch):
    monkeypatch.setenv("SERA_PLUGINS", "")
    scope = {"__name__": "documentation"}
    for block in blocks("python"):
        if block.page == page and block.mark == "run":
            exec(compile(block.text, str(block), "exec", dont_inherit=True), scope)  # noqa: S102  # our own pages


def test_the_written_plugin_passes_the_contract_kit(monkeypatch):
    from sera_core.catalog import Catalog

    monkeypatch.setenv("SERA_PLUGINS", "")
    scope = {"__name__": "documentation"}
    for block in blocks("python"):
        if block.page == "docs/writing_plugins.md" and block.mark == "run":
            exec(compile(block.text, str(block), "exec", dont_inherit=True), scope)  # noqa: S102  # our own pages
    assert Catalog.from_manager(scope["manager"]).build("scorer", "brevity", {"target": 3}).target == 3
    with pytest.raises(ConfigError, match="at least 1"):
        scope["Brevity"](target=0)


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_the_entry_point_is_the_example_plugin_s(block):
    shown = tomllib.loads(block.text)["project"]["entry-points"]
    project = tomllib.loads((ROOT / "docs/example_plugin/pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert shown == project["entry-points"]


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_example_rows_are_usable(block):
    (line,) = block.text.splitlines()
    pairs, dropped = text_pairs([json.loads(line)], "auto", RowOptions(), "the documentation")
    assert [pair.chosen.strip() for pair in pairs] == ["Seven."]
    assert not dropped


@pytest.mark.parametrize(("where", "line"), COMMANDS)
def test_commands_exist(where, line):
    program, *arguments = shlex.split(line)
    if program in {"accelerate", "torchrun"}:
        program, arguments = "sera", arguments[arguments.index("sera_core") + 1 :]
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    elif program == "sera":
        command = typer.main.get_command(app)
        name, sub, rest = command.resolve_command(click.Context(command), arguments)
        sub.make_context(name, rest)
    elif program == "python":
        script, *given = arguments
        text = (ROOT / script).read_text(encoding="utf-8")
        assert script.startswith("benchmarks/"), where
        for option in (each for each in given if each.startswith("--")):
            assert f'"{option}"' in text, f"{where}: {script} has no {option}"
    else:
        assert program in {"pip", "pre-commit"}, where


@pytest.mark.parametrize("line", sorted(set(RUNS)))
def test_run_commands_plan(line, catalog):
    _, _, config, *rest = shlex.split(line)
    overrides = [argument for argument in rest if "=" in argument]
    try:
        path = configfile.locate(config)
    except ConfigError:
        assert config in {"my-run.yaml"}  # the reader's own file
        return
    make_plan(configfile.override(settings(path), overrides), catalog)


@pytest.mark.parametrize("line", sorted({line for _, line in COMMANDS if line.startswith("sera tune ")}))
def test_tune_commands_plan(line):
    _, _, config, choice, *rest = shlex.split(line)
    overrides = [argument for argument in rest if "=" in argument]
    raw = configfile.override(settings(configfile.locate(config)), overrides)
    check_arms(make_tuning(raw, read_choice(choice), metric="accuracy").ablation)


@pytest.mark.parametrize("line", sorted({line for _, line in COMMANDS if line.startswith("sera describe ")}))
def test_described_components_exist(line, catalog):
    role, name = shlex.split(line)[2:4]
    assert catalog.entry(role, name).name == name


def test_every_command_is_in_the_index():
    text = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    for name in typer.main.get_command(app).commands:
        assert f"`sera {name}" in text


def test_there_are_examples_to_test():
    assert len(CONFIGS) >= 4
    assert len(RUNS) >= 5
    assert len(names()) >= 12

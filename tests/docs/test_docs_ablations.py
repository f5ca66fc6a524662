"""docs/ablations.md lists every key, option, preset and file of an ablation."""

from dataclasses import fields

import typer
from doc_pages import rows, section, text_of, ticked

from sera_core import ablation
from sera_core.ablating.book import described
from sera_core.ablating.config import AblationConfig, Resources
from sera_core.ablating.jobs import Result
from sera_core.cli import app

PAGE = "docs/ablations.md"


def listed(heading, column=0):
    return {name for row in rows(section(PAGE, heading)) for name in ticked(row[column])}


def test_every_key_and_option_is_documented():
    options = {p.opts[0] for p in typer.main.get_command(app).commands["ablate"].params if p.opts[0].startswith("--")}
    assert listed("Ablations") == {*AblationConfig.model_fields, *options}
    assert all(f"`{name}`" in section(PAGE, "Ablations") for name in Resources.model_fields)


def test_every_shipped_ablation_is_listed_with_its_runs():
    stated = {ticked(row[0])[0]: int(row[2]) for row in rows(section(PAGE, "What is shipped"))}
    found = {name: ablation.read_ablation(path) for name, path in ablation.presets().items()}
    assert stated == {name: len(each.arms) * len(each.seeds) for name, each in found.items()}


def test_every_file_and_field_is_documented():
    names = listed("What comes out")
    assert {"ablation.json", "results.json"} | {field.name for field in fields(Result)} <= names
    asked = described(ablation.read_ablation(ablation.locate_ablation("gamma")))
    assert all(f"`{name}`" in text_of(PAGE) for name in asked)

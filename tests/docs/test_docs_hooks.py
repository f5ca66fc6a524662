"""docs/hooks.md has one heading per hook, its signature, and every hook is used somewhere outside its specification."""

import ast
import re

import pytest
from doc_pages import ROOT, text_of

from sera_core import hookspecs
from sera_core.catalog import Catalog
from sera_core.hookspecs import hookimpl
from sera_core.host import build_manager
from sera_core.records import IterationReport, StepRecord

SPECIFICATIONS = [
    node
    for node in ast.parse((ROOT / "src/sera_core/hookspecs.py").read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef)
]


def signature(node):
    return f"{node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"


def implemented():
    """Names of functions decorated with hookimpl in components, plugins and tests."""
    folders = ("src/sera_core/builtin", "plugins", "docs/example_plugin", "tests")
    files = (file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in files)
    functions = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return {f.name for f in functions if any(ast.unparse(d).startswith("hookimpl") for d in f.decorator_list)}


def test_every_hook_has_its_signature_as_a_heading_in_order():
    headings = re.findall(r"^## `(.+)`$", text_of("docs/hooks.md"), re.MULTILINE)
    assert headings == [signature(node) for node in SPECIFICATIONS]


def test_the_specifications_are_what_the_host_registers():
    known = {name for name in vars(hookspecs) if name.startswith("sera_")}
    assert known == {node.name for node in SPECIFICATIONS}


@pytest.mark.parametrize("hook", [node.name for node in SPECIFICATIONS])
def test_every_hook_is_exercised(hook):
    assert hook in implemented()


class Listener:
    def __init__(self):
        self.heard = []

    @hookimpl
    def sera_step_finished(self, record):
        self.heard.append(record)

    @hookimpl
    def sera_iteration_finished(self, report):
        self.heard.append(report)

    @hookimpl
    def sera_register_transforms(self):
        return {}


def test_observers_get_the_records():
    listener = Listener()
    manager = build_manager(allow=(), extra=[("listener", listener)])
    step, report = StepRecord(1, 2, {"loss": 0.5}), IterationReport(1, {"accuracy": 0.75})
    manager.hook.sera_step_finished(record=step)
    manager.hook.sera_iteration_finished(report=report)
    assert listener.heard == [step, report]
    assert Catalog.from_manager(manager).names("transform") == ()

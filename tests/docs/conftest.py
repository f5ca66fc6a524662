"""The scripts that write pages, as the tests of those pages run them."""

import runpy

import pytest
from doc_pages import ROOT

TABLES = ROOT / "docs" / "tables"


@pytest.fixture
def script(monkeypatch):
    """Runs a script of docs/tables, whose neighbours it imports, and gives its names."""
    monkeypatch.syspath_prepend(str(TABLES))
    return lambda name: runpy.run_path(str(TABLES / f"{name}.py"))

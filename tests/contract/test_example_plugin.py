import importlib
from pathlib import Path

import numpy as np
import pytest

from sera_core.catalog import Catalog
from sera_core.errors import ConfigError
from sera_core.host import build_manager
from sera_core.records import ScoringLogps
from sera_core.testing import contract_checks
from sera_core.testing.samples import response

ROOT = Path(__file__).parents[2] / "docs" / "example_plugin"


@pytest.fixture
def catalog(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "src")
    module = importlib.import_module("sera_plugin_example")
    return Catalog.from_manager(build_manager(allow=(), extra=[("example", module)]))


def test_the_whole_plugin_is_under_60_lines_of_python():
    assert sum(len(path.read_text().splitlines()) for path in ROOT.rglob("*.py")) < 60


def test_it_passes_the_contract_kit(catalog):
    checks = [check for check in contract_checks(catalog) if check.name == "distinct_tokens"]
    assert len(checks) >= 9
    for check in checks:
        check()


def test_its_scores_by_hand(catalog):
    responses = [response(0, "red red blue red"), response(1, "red")]
    logps = ScoringLogps(np.array([5, 2]))
    # Ids include the end-of-turn token.
    assert catalog.build("scorer", "distinct_tokens").scores(responses, logps).tolist() == [3 / 5, 1.0]
    assert catalog.build("scorer", "distinct_tokens", {"n": 2}).scores(responses, logps).tolist() == [1.0, 1.0]
    assert catalog.build("scorer", "distinct_tokens", {"n": 3}).scores(responses, logps).tolist() == [1.0, 1.0]


def test_its_bad_option_is_named(catalog):
    with pytest.raises(ConfigError, match="option n must be an integer >= 1; got 0"):
        catalog.build("scorer", "distinct_tokens", {"n": 0})

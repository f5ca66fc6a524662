"""The contract kit over everything this distribution registers."""

import pytest

from sera_core.catalog import load_catalog
from sera_core.testing import contract_checks

CATALOG = load_catalog()


@pytest.mark.parametrize("check", contract_checks(CATALOG, distribution="sera-plugin-spa"), ids=str)
def test_contract(check):
    check()


def test_what_is_registered():
    found = {(e.role, e.name) for e in CATALOG.entries() if e.distribution == "sera-plugin-spa"}
    assert found == {
        ("scorer", "direct_judgment"),
        ("labeler", "direct_judgment"),
        ("smoother", "spa"),
        ("smoother", "spa_official_code"),
    }

import pytest

from sera_core.catalog import load_catalog
from sera_core.testing import contract_checks


@pytest.mark.parametrize("check", contract_checks(load_catalog(), distribution="sera-plugin-example"), ids=str)
def test_contract(check):
    check()

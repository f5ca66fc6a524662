"""The contract kit: what every component must satisfy, as checks that any plugin can run in its own tests.

    import pytest
    from sera_core.catalog import load_catalog
    from sera_core.testing import contract_checks

    @pytest.mark.parametrize("check", contract_checks(load_catalog(), distribution="sera-plugin-x"), ids=str)
    def test_contract(check):
        check()

The kit constructs each component with its defaults, or with the classmethod ``example()`` where an option has no
default. Transforms, smoothers and reweighters offer a classmethod ``neutral()``: the setting that changes nothing.
A selector whose choice depends on the ranking of margins alone says so with the class attribute ``rank_based = True``.
A judge that only grades or only compares raises NotImplementedError from the other method.
A check that fails raises `ContractError`, or whatever the component itself raises.
"""

from sera_core.testing.contract import Check, ContractError, Property, contract_checks

__all__ = ["Check", "ContractError", "Property", "contract_checks"]

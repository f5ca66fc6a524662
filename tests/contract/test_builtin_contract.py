import pytest

from sera_core.catalog import load_catalog
from sera_core.protocols import ROLES
from sera_core.testing import contract_checks

CATALOG = load_catalog()


@pytest.mark.parametrize("check", contract_checks(CATALOG), ids=str)
def test_contract(check):
    check()


def test_every_registered_component_is_checked():
    checked = {(check.role, check.name) for check in contract_checks(CATALOG)}
    assert checked == {(role, name) for role in ROLES for name in CATALOG.names(role)}


@pytest.mark.parametrize(
    ("role", "names"),
    [
        ("scorer", {"length", "annotated", "reference_gap"}),
        ("selector", {"all", "curriculum", "top", "random", "threshold"}),
        ("labeler", {"best_worst", "target_first"}),
        ("objective", {"dpo", "ipo", "hinge", "simpo", "orpo"}),
        ("smoother", {"none", "constant", "unbiased"}),
        ("reweighter", {"uniform"}),
        ("generator", {"transformers", "vllm"}),
        ("judge", {"gold", "llm_judge", "llm_grades", "reward_model"}),
        ("source", {"world", "preferences"}),
    ],
)
def test_built_in_components_are_registered(role, names):
    assert {name for name in CATALOG.names(role) if CATALOG.entry(role, name).plugin == "builtin"} == names

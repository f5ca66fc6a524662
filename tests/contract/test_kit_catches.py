"""Every line of the contract is broken by some component here, so that no check of the kit passes whatever comes."""

import broken_curation
import broken_generation
import broken_training
import pytest

from sera_core.catalog import Catalog, Entry
from sera_core.errors import ConfigError
from sera_core.testing import contract_checks
from sera_core.testing.contract import ContractError, checks_of, properties

CONTRACT = properties()
BROKEN = broken_curation.BROKEN + broken_training.BROKEN + broken_generation.BROKEN


def checks(role, factory):
    entry = Entry(role, "broken", factory, "test", "sera-plugin-broken", "0")
    return {check.property: check for check in checks_of(entry, CONTRACT[role])}


@pytest.mark.parametrize(("role", "line", "factory"), BROKEN, ids=lambda value: getattr(value, "__name__", str(value)))
def test_broken_component_is_caught(role, line, factory):
    with pytest.raises(ContractError):
        checks(role, factory)[line]()


def test_every_line_of_every_contract_has_a_component_that_breaks_it():
    common = {line.name for line in CONTRACT["scorer"]} & {line.name for line in CONTRACT["judge"]}
    lines = {(role, line.name) for role, contract in CONTRACT.items() for line in contract}
    own = {(role, name) for role, name in lines if name not in common or role == "scorer"}
    assert {(role, line) for role, line, _ in BROKEN} == own


@pytest.mark.parametrize(
    ("role", "factory"),
    [
        ("scorer", broken_curation.GoodScorer),
        ("transform", broken_training.GoodTransform),
        ("reweighter", broken_training.GoodWeighing),
        ("smoother", broken_training.GoodSmoothing),
        ("source", broken_generation.GoodSource),
        ("selector", broken_curation.Selecting),
        ("selector", broken_curation.ByPrompt),
        ("judge", broken_generation.Abstaining),
    ],
)
def test_sound_component_passes(role, factory):
    found = checks(role, factory)
    assert len(found) >= 7
    for check in found.values():
        check()


def test_checks_read_as_role_name_property():
    assert str(checks("scorer", broken_curation.GoodScorer)["finite"]) == "scorer:broken:finite"


def test_message_says_what_came():
    with pytest.raises(ContractError, match="float64, got array"):
        checks("scorer", broken_curation.Float32)["float64"]()
    with pytest.raises(ContractError, match=r"example\(\)"):
        checks("scorer", broken_curation.RequiredOption)["constructible"]()


def catalog():
    entry = Entry("scorer", "good", broken_curation.GoodScorer, "test", "sera-plugin-good", "0")
    return Catalog({("scorer", "good"): entry})


def test_an_empty_list_of_checks_is_an_error():
    assert contract_checks(catalog(), distribution="sera-plugin-good")
    with pytest.raises(ConfigError, match=r"'sera-plugin-god'.*Did you mean 'sera-plugin-good'"):
        contract_checks(catalog(), distribution="sera-plugin-god")
    with pytest.raises(ConfigError, match="nothing to check"):
        contract_checks(Catalog({}))

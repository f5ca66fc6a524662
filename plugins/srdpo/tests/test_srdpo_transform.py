"""The self-refinement transform: values by hand, its gradient, what it needs, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sera_core.catalog import load_catalog
from sera_core.errors import ConfigError
from sera_core.plan import make_plan
from sera_core.protocols import Needs
from sera_core.records import PairBatch, PairLogps
from sera_core.testing import contract_checks
from sera_plugin_srdpo import PREFIX, SelfRefinement

CATALOG = load_catalog()


def logps(*chosen_and_rejected):
    """Log-probs of b pairs without a reference; lengths 2 and 4."""
    chosen, rejected = (torch.tensor(side) for side in zip(*chosen_and_rejected, strict=True))
    return PairLogps(chosen, rejected, torch.full_like(chosen, 2), torch.full_like(rejected, 4))


def batch(**prefixed):
    return PairBatch(logps((-1.0, -2.0)), progress=0.0, iteration=1, prefixed=prefixed)


def test_the_share_is_taken_from_each_margin():
    h, h_p = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([4.0, 1.0, -3.0])
    changed = SelfRefinement(strength=0.5, prefix="good").apply(h, batch(good=h_p, other=h))
    assert changed.tolist() == [-1.0, -2.5, 2.0]


def test_sr_dpo_by_hand():
    # beta 0.5, h = 2, h_p = 3, lambda 0.2: -log s(0.5 * 2 - 0.2 * 0.5 * 3) = -log s(0.7)
    dpo = CATALOG.build("objective", "dpo", {"beta": 0.5})
    h = SelfRefinement(strength=0.2, prefix="good").apply(torch.tensor([2.0]), batch(good=torch.tensor([3.0])))
    assert dpo.losses(h).item() == pytest.approx(math.log1p(math.exp(-0.7)), rel=1e-6)


def test_sr_ipo_by_hand():
    # beta 0.25, h = 3, h_p = 2, lambda 0.5: (3 - 0.5 * 2 - 2)^2 = 0; h_p = 4 gives (3 - 2 - 2)^2 = 1
    ipo = CATALOG.build("objective", "ipo", {"beta": 0.25})
    h = SelfRefinement(strength=0.5, prefix="good").apply(
        torch.tensor([3.0, 3.0]), batch(good=torch.tensor([2.0, 4.0]))
    )
    assert ipo.losses(h).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("strength", [0, 0.0])
def test_strength_0_is_the_same_tensor_and_needs_nothing(strength):
    transform, h = SelfRefinement(strength=strength), torch.tensor([0.1, -0.0])
    assert transform.apply(h, batch()) is h
    assert transform.needs == Needs()
    assert SelfRefinement.neutral() == SelfRefinement(strength=0.0)


def test_it_needs_its_prefix():
    assert SelfRefinement().needs == Needs(prefixes=(PREFIX,))
    assert SelfRefinement(prefix="good {prompt}?").needs.prefixes == ("good {prompt}?",)


def test_the_gradient_passes_through_the_margins_alone():
    h, h_p = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([3.0, 4.0], requires_grad=True)
    changed = SelfRefinement(strength=0.5, prefix="good").apply(h, batch(good=h_p))
    through, own = torch.autograd.grad((changed * torch.tensor([1.0, 10.0])).sum(), [h, h_p], allow_unused=True)
    assert through.tolist() == [1.0, 10.0]
    assert own is None


def test_two_transforms_read_their_own_prefixes():
    h = torch.tensor([1.0])
    prefixed = batch(good=torch.tensor([10.0]), kind=torch.tensor([100.0]))
    first, second = SelfRefinement(strength=0.1, prefix="good"), SelfRefinement(strength=0.01, prefix="kind")
    assert second.apply(first.apply(h, prefixed), prefixed).item() == pytest.approx(-1.0)


finite = st.floats(-1e4, 1e4, width=32)


@given(st.floats(0, 2), finite, finite)
def test_the_change_is_linear_in_the_prefixed_margin(strength, h, h_p):
    changed = SelfRefinement(strength=strength, prefix="good").apply(
        torch.tensor([h], dtype=torch.float64), batch(good=torch.tensor([h_p], dtype=torch.float64))
    )
    assert changed.item() == pytest.approx(h - strength * h_p, rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf"), True, "x"])
def test_a_bad_strength_is_named(strength):
    with pytest.raises(ConfigError, match="option strength must be a finite number >= 0"):
        SelfRefinement(strength=strength)


@pytest.mark.parametrize("prefix", ["", " \n", "{prompt}", " {prompt} ", 3, None])
def test_a_prefix_that_says_nothing_is_refused(prefix):
    with pytest.raises(ConfigError, match="option prefix must be a text that asks for quality"):
        SelfRefinement(prefix=prefix)


def test_a_template_has_one_place():
    assert SelfRefinement(prefix="Rate: {prompt} well").prefix == "Rate: {prompt} well"
    with pytest.raises(ConfigError, match=r"holds \{prompt\} 2 times"):
        SelfRefinement(prefix="{prompt} and {prompt}")


def test_the_default_prefix_asks_for_the_highest_rating_before_the_query():
    for part in ("100 out of 100", "100 is the maximum and 1 the minimum", "harms nobody"):
        assert part in PREFIX
    assert PREFIX.endswith("Query: ")


def test_the_world_recommends_its_quality_word():
    from sera_core.world.spec import QUALITY

    user = {"name": "sr", "objective": {"transforms": [{"name": "self_refinement", "strength": 0.0}]}}
    (transform,) = make_plan(user, CATALOG).iterations[0].objective.transforms
    assert transform == SelfRefinement(strength=0.0, prefix=QUALITY)


def test_a_strength_may_change_by_iteration():
    transform = {"name": "self_refinement", "strength": {"by_iteration": [0.0, 0.5]}}
    user = {"name": "sr", "loop": {"iterations": 2}, "objective": {"transforms": [transform]}}
    assert [s.objective.transforms[0].strength for s in make_plan(user, CATALOG).iterations] == [0.0, 0.5]


@pytest.mark.parametrize("check", contract_checks(CATALOG, distribution="sera-plugin-srdpo"), ids=str)
def test_contract(check):
    check()


def test_what_is_registered():
    found = {(e.role, e.name) for e in CATALOG.entries() if e.distribution == "sera-plugin-srdpo"}
    assert found == {("transform", "self_refinement")}

"""Any loss goes with any transform, smoother and reweighter by names alone, or is refused before any compute."""

from __future__ import annotations

import math

import pytest
import torch
from compositions import ALL, NEUTRAL, WITHOUT_REFERENCE, weights

from sera_core.errors import ConfigError


def trained(place, combination):
    """The outcome of a combination; where that is not valid, without what made it so."""
    return place.run(combination.objective(**({} if combination.valid else {"extrapolation": 0})))


def check(place, combination):
    outcome = trained(place, combination)
    first, last = outcome.steps
    assert all(math.isfinite(value) for step in outcome.steps for value in step.values())
    assert torch.isfinite(outcome.weights).all()
    assert (outcome.weights - weights(place.model)).abs().max() > 1e-3
    if combination.loss not in WITHOUT_REFERENCE:
        assert first["margin_mean"] == 0
        assert abs(last["margin_mean"]) > 0.01, "the second step must see a policy that has moved"
    if combination.smoother == "spa":
        assert (first["refining"], last["refining"]) == (0, 1)
        assert first.get("flip_mean", 0) == 0 < last["flip_mean"]
        assert 0 < last["flagged"] < 0.5
        assert abs(last["threshold"] - 0.5) > 0.005
    for role in NEUTRAL:
        plainer = combination.without(role)
        if plainer is not None:
            assert acts(outcome, trained(place, plainer), combination, role), f"the {role} changed nothing"


def acts(outcome, plainer, combination, role):
    """Whether the component in one role shows: in the final weights wherever it can move a gradient."""
    if role == "transform" and combination.loss == "hinge":
        # Its term carries no gradient, and the hinge is as steep at any margin short of 1 / beta.
        return abs(outcome.steps[-1]["loss"] - plainer.steps[-1]["loss"]) > 1e-6
    if role == "smoother" and (combination.loss, combination.smoother, combination.reweighter) == DROWNED:
        return outcome.steps[-1]["flagged"] > 0
    return bool((outcome.weights - plainer.weights).abs().max() > 1e-6)


# IPO's losses are large before training, so that Dr. DPO gives the pairs of largest loss, those flagged, no weight.
DROWNED = ("ipo", "spa", "dr_dpo")


@pytest.mark.parametrize("combination", [c for c in ALL if c.valid], ids=str)
def test_it_trains_and_every_component_acts(combination, place):
    check(place, combination)
    if combination.smoother == "spa":
        # Doubt is that of the extrapolated policy: the policy's own is less pronounced.
        far, own = trained(place, combination), place.run(combination.objective(extrapolation=0))
        assert far.steps[-1]["threshold"] < own.steps[-1]["threshold"] - 0.002


@pytest.mark.parametrize("combination", [c for c in ALL if not c.valid], ids=str)
def test_it_is_refused_before_any_compute_and_trains_without_what_was_refused(combination, place):
    before = sorted(place.folder.iterdir())
    with pytest.raises(ConfigError, match=f"objective '{combination.loss}' has no reference. Set its extrapolation to"):
        place.run(combination.objective())
    assert sorted(place.folder.iterdir()) == before
    check(place, combination)

"""Every shipped preset goes with every loss by name alone, or is refused for a reason that stands here."""

import re

import pytest

from sera_core import configfile
from sera_core.catalog import load_catalog
from sera_core.configfile import override
from sera_core.errors import ConfigError
from sera_core.plan import make_plan

CATALOG = load_catalog()
PRESETS = configfile.presets()
WITHOUT_REFERENCE = ("simpo", "orpo")
# Models that presets leave to the user.
ASKS = {"spa-no-seed": ("policy.model=tuned",), "spa-reward-model": ("generated.judge.model=judge",)}

# What needs the reference that simpo and orpo do not have, and what to set instead.
ITERATES = "scorer compares each iterate with the reference it was trained against"
EXTRAPOLATED = r"'spa' reads token logits extrapolated away from the reference.*Set its extrapolation to 0"
GIVEN = r"loop.reference is set, but objective '\w+' is reference-free.*set loop.reference=null"
SCORED = dict.fromkeys(
    ("irm-only", "sera-dpo", "sera-ipo", "sera-hinge", "best-sera-dpo", "sera-dpo-growing"), ITERATES
)
SCORED |= dict.fromkeys(("bootstrap-only", "sera-dro-dpo", "spa-previous-reference"), ITERATES)
DOUBTED = dict.fromkeys(("spa", "spa-dro", "spa-no-reference", "spa-no-seed"), EXTRAPOLATED)
REFUSED = {**SCORED, **DOUBTED, "oaif": GIVEN}


def planned(preset, *overrides):
    raw = configfile.read(PRESETS[preset])
    return make_plan(override(raw, [*ASKS.get(preset, ()), *overrides]), CATALOG)


@pytest.mark.parametrize("loss", CATALOG.names("objective"))
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_with_every_loss(preset, loss):
    if loss in WITHOUT_REFERENCE and preset in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[preset]):
            planned(preset, f"objective.loss={loss}")
        return
    steps = planned(preset, f"objective.loss={loss}").iterations
    assert {step.config.objective.loss.name for step in steps} == {loss}


@pytest.mark.parametrize("loss", WITHOUT_REFERENCE)
@pytest.mark.parametrize(
    ("preset", "remedy"),
    [
        ("oaif", "loop.reference=null"),
        ("spa", "objective.smoother.extrapolation=0"),
        ("spa-dro", "objective.smoother.extrapolation=0"),
        ("spa-no-seed", "objective.smoother.extrapolation=0"),
    ],
)
def test_the_remedy_named_in_a_refusal_is_enough(preset, remedy, loss):
    assert planned(preset, f"objective.loss={loss}", remedy)


def test_null_takes_back_what_a_preset_says_of_the_loop():
    assert planned("oaif").config.loop.reference == "initial"
    taken = planned("oaif", "loop.reference=null", "loop.start=null").config.loop
    assert (taken.reference, taken.start) == ("previous", "previous")
    with pytest.raises(ConfigError, match=r"loop.reference = initial has no meaning.*loop.reference=null"):
        planned("oaif", "loop.iterations=1", "generated.disjoint=false")
    planned("oaif", "loop.iterations=1", "generated.disjoint=false", "loop.reference=null")
    with pytest.raises(ConfigError, match=r"loop.iterations"):
        planned("oaif", "loop.iterations=null")


def test_a_shorter_loop_is_told_what_to_shorten():
    with pytest.raises(ConfigError) as caught:
        planned("spa", "loop.iterations=1")
    assert str(caught.value) == (
        "offline: by_iteration has 2 entries, objective.smoother.extrapolation: by_iteration has 4 entries, "
        "objective.smoother.warmup: by_iteration has 2 entries, training.num_train_epochs: by_iteration has 2 entries "
        "for loop.iterations = 1; the rest would never be used. Shorten with "
        "'offline={by_iteration: [{selector: {name: random, fraction: 0.1}}]}' "
        "'objective.smoother.extrapolation={by_iteration: [0.0]}' "
        "'objective.smoother.warmup={by_iteration: [1.0]}' 'training.num_train_epochs={by_iteration: [3]}', or raise "
        "loop.iterations."
    )


def test_what_messages_say_to_add_makes_a_shorter_loop_plan():
    extrapolation = "objective.smoother.extrapolation={by_iteration: [0.0, 0.5]}"
    with pytest.raises(ConfigError, match=re.escape(f"Shorten with '{extrapolation}', or")):
        planned("spa", "loop.iterations=2")
    with pytest.raises(ConfigError, match="Set generated.disjoint=false"):
        planned("spa", "loop.iterations=2", extrapolation)
    steps = planned("spa", "loop.iterations=2", extrapolation, "generated.disjoint=false").iterations
    assert [step.objective.smoother.extrapolation for step in steps] == [0.0, 0.5]

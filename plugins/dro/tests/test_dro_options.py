"""Options that cannot be honoured are refused when the component is built, naming the option."""

import numpy as np
import pytest
import torch

from sera_core.catalog import load_catalog
from sera_core.errors import ConfigError
from sera_plugin_dro import (
    KL,
    ChiSquare,
    CVaR,
    DrDPO,
    LabelFlip,
    Schedule,
    Wasserstein,
    WassersteinDiscrete,
)

NAN = float("nan")


@pytest.mark.parametrize("factory", [Wasserstein, KL, ChiSquare, WassersteinDiscrete, LabelFlip])
@pytest.mark.parametrize("radius", [-0.1, NAN, float("inf"), True, np.True_, torch.tensor(True), "0.1", [0.1]], ids=str)
def test_bad_radii_are_named(factory, radius):
    with pytest.raises(ConfigError, match="option radius must be a finite number >= 0"):
        factory(radius=radius)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": 0.1, "radius_from": 0.9}, "options radius and radius_from exclude each other.*Remove one"),
        ({"radius_from": 1.0}, "option radius_from must be a confidence level, 0 < radius_from < 1.*got 1.0"),
        ({"radius_from": 0}, "option radius_from"),
        ({"radius_from": True}, "option radius_from"),
        ({"support": (0.0, 1.0)}, r"option support must be two confidences \[lo, hi\].*no value at 0"),
        ({"support": (0.5, 0.5)}, "option support"),
        ({"support": (0.5, 1.5)}, "option support"),
        ({"support": (0.1, 0.2, 0.3)}, "option support"),
        ({"support": (0.1, NAN)}, "option support"),
        ({"support": 0.1}, "option support"),
        ({"method": "lp"}, "option method must be 'exact' or 'program'; got 'lp'"),
        ({"gradient": "exact"}, "option gradient must be 'envelope' or 'expectation' or 'literal'"),
        ({"scope": "epoch"}, "option scope must be 'batch' or 'dataset'"),
        ({"pieces": 8}, "option pieces = 8 is only read with method: program.*Remove pieces"),
        ({"solver": "SCS"}, "option solver = 'SCS' is only read with method: program"),
        ({"method": "program", "pieces": 1}, "option pieces must be an integer >= 2; got 1"),
        ({"method": "program", "pieces": 8.0}, "option pieces must be an integer"),
        ({"method": "program", "solver": "CLARABLE"}, "option solver: .*CLARABLE.*CLARABEL"),
        ({"group_size": 8}, "option group_size = 8 is only read with scope: dataset"),
        ({"refresh": 2.0}, "option refresh = 2.0 is only read with scope: dataset"),
        ({"scope": "dataset", "refresh": 0}, "option refresh must be a finite number > 0"),
        ({"scope": "dataset", "group_size": 0}, "option group_size must be an integer >= 1"),
        ({"normalise": "no"}, "option normalise must be true or false"),
    ],
    ids=str,
)
def test_wasserstein_options(options, message):
    with pytest.raises(ConfigError, match=f"reweighter 'wasserstein': {message}"):
        Wasserstein(**options)


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (KL, {"radius": 0.1, "temperature": 1.0}, "reweighter 'kl': options radius and temperature exclude each other"),
        (KL, {"temperature": 0.0}, "reweighter 'kl': option temperature must be a finite number > 0"),
        (CVaR, {"level": 0.0}, "reweighter 'cvar': option level must be the share of the worst pairs"),
        (CVaR, {"level": 1.1}, "option level"),
        (CVaR, {"level": NAN}, "option level"),
        (DrDPO, {"temperature": -1}, "reweighter 'dr_dpo': option temperature must be a finite number > 0"),
        (DrDPO, {"temperature": float("inf")}, "option temperature"),
        (
            WassersteinDiscrete,
            {"cap": 0.9},
            "reweighter 'wasserstein_discrete': option cap must be a finite number >= 1",
        ),
        (WassersteinDiscrete, {"cost": "loss"}, "option cost must be 'confidence' or 'margin'; got 'loss'"),
        (LabelFlip, {"cost": 0}, "smoother 'label_flip': option cost must be a finite number > 0"),
    ],
    ids=str,
)
def test_other_options(factory, options, message):
    with pytest.raises(ConfigError, match=message):
        factory(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": -1, "end": 0}, "radius schedule: option start must be a finite radius >= 0"),
        ({"start": 0, "end": NAN}, "option end"),
        ({"start": 0, "end": 1, "until": 0}, "option until must be a share of the training steps"),
        ({"start": 0, "end": 1, "until": 1.5}, "option until"),
    ],
    ids=str,
)
def test_schedule_options(options, message):
    with pytest.raises(ConfigError, match=message):
        Schedule(**options)


def test_a_schedule_is_linear_then_constant():
    schedule = Schedule(start=0.2, end=0.1, until=0.5)
    assert [schedule.at(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx([0.2, 0.15, 0.1, 0.1, 0.1])
    assert (schedule.at(0.0), schedule.at(1.0)) == (0.2, 0.1)


def test_configurations_build_schedules_and_supports():
    built = load_catalog().build(
        "reweighter", "wasserstein", {"radius": {"start": 0, "end": 0.1}, "support": [0.05, 0.9]}
    )
    assert built == Wasserstein(radius=Schedule(0.0, 0.1, 1.0), support=(0.05, 0.9))


@pytest.mark.parametrize("radius", [{"start": 0, "end": 0.1, "untill": 0.5}, {"start": 0}, "large", [0.1]], ids=str)
def test_configurations_with_a_mistake_in_the_radius_are_refused(radius):
    with pytest.raises(ConfigError, match="reweighter 'wasserstein': .*radius"):
        load_catalog().build("reweighter", "wasserstein", {"radius": radius})


RADII = [("reweighter", "wasserstein"), ("reweighter", "kl"), ("reweighter", "chi2"), ("smoother", "label_flip")]


@pytest.mark.parametrize(("role", "name"), RADII)
@pytest.mark.parametrize(
    ("radius", "message"),
    [
        ({"start": 0, "end": 0.1, "untill": 0.5}, r"radius\.untill is unknown\."),
        ({"start": 0, "stop": 0.1}, r"radius\.stop is unknown; radius\.end is missing\."),
        ({"start": "low", "end": 0.1}, r"radius\.start = 'low': must be a number\."),
        ({"start": 0, "end": -0.1}, "radius schedule: option end must be a finite radius >= 0.*got -0.1"),
        ({"start": 0, "end": 0.1, "until": 2}, "radius schedule: option until must be a share"),
        (True, "radius = True: must be a number or must be a mapping"),
    ],
    ids=str,
)
def test_a_mistake_in_a_schedule_names_the_component_and_the_key(role, name, radius, message):
    with pytest.raises(ConfigError, match=f"^{role} '{name}': {message}"):
        load_catalog().build(role, name, {"radius": radius})


@pytest.mark.parametrize("value", ["yes", "true", 1, 0])
def test_a_flag_is_true_or_false_and_nothing_else(value):
    with pytest.raises(ConfigError, match=f"reweighter 'wasserstein': normalise = {value!r}: must be true or false"):
        load_catalog().build("reweighter", "wasserstein", {"normalise": value})


def test_the_default_refresh_weighs_again_within_one_epoch():
    assert Wasserstein(scope="dataset").needs.dataset_every == 0.25


def test_the_default_radius_is_stated():
    assert Wasserstein().radius == 0.05
    assert Wasserstein(radius_from=0.9).radius is None
    assert KL().radius == 0.1
    assert KL(temperature=1.0).radius is None

"""Measuring the whole training set where no measurement could change anything is refused."""

import pytest

from sera_core import configfile
from sera_core.catalog import load_catalog
from sera_core.configfile import override
from sera_core.errors import ConfigError
from sera_core.plan import make_plan
from sera_core.plancheck import check_plan

CATALOG = load_catalog()


def planned(preset, *overrides):
    raw = override(configfile.read(configfile.locate(preset)), overrides)
    plan = make_plan(raw, CATALOG)
    check_plan(plan)
    return plan


def wasserstein(refresh):
    return f"objective.reweighter={{name: wasserstein, scope: dataset, refresh: {refresh}}}"


def spa(refresh, warmup=0.2):
    options = f"threshold_scope: dataset, refresh: {refresh}, warmup: {warmup}, extrapolation: 0.0"
    return f"objective.smoother={{name: spa, {options}}}"


@pytest.mark.parametrize(
    ("override", "role", "name"), [(wasserstein(1.0), "reweighter", "wasserstein"), (spa(1.5), "smoother", "spa")]
)
def test_a_refresh_that_never_comes_is_refused(override, role, name):
    with pytest.raises(
        ConfigError, match=rf"objective\.{role}: '{name}' .* iteration 1 .*num_train_epochs = 1: .*once, "
    ):
        planned("dpo", override, "training.num_train_epochs=1")
    planned("dpo", override, "training.num_train_epochs=2")


def test_the_default_refresh_acts_within_one_epoch():
    plan = planned("dpo", "objective.reweighter={name: wasserstein, scope: dataset}", "training.num_train_epochs=1")
    assert plan.iterations[0].objective.reweighter.needs.dataset_every == 0.25


def test_with_a_number_of_steps_epochs_are_not_known():
    planned("dpo", wasserstein(1.0), "training.num_train_epochs=null", "training.max_steps=100")


def test_where_a_first_measurement_tells_pairs_apart_it_may_be_the_only_one():
    planned("orpo", wasserstein(1.0), "training.num_train_epochs=1")
    later = "objective.reweighter={by_iteration: [uniform, {name: wasserstein, scope: dataset, refresh: 1.0}]}"
    one = ("training.num_train_epochs=1", later)
    planned("iterative-dpo", *one, "loop.reference=initial")
    with pytest.raises(ConfigError, match="but iteration 2 has"):
        planned("iterative-dpo", *one)


@pytest.mark.parametrize(
    ("loss", "epochs", "refresh", "warmup", "last"),
    [
        # Measured at 0 and 0.9 of the steps; at 0 and 2/3; at 0 alone, where a loss without reference has margins.
        ("dpo", 1, 0.9, 0.95, "0.9"),
        ("dpo", 3, 2.0, 0.9, "0.666667"),
        ("simpo", 1, 5.0, 0.2, "0"),
        ("orpo", 2, 2.0, 0.01, "0"),
    ],
)
def test_a_warm_up_that_outlasts_every_measurement_is_refused(loss, epochs, refresh, warmup, last):
    more = f"training.num_train_epochs={epochs}"
    with pytest.raises(
        ConfigError,
        match=rf"'spa' measures .* acts on none before the share {warmup:g} of the steps.*last one comes at {last}, so",
    ):
        planned("dpo", f"objective.loss={loss}", spa(refresh, warmup), more)
    planned("dpo", f"objective.loss={loss}", spa(refresh / 50, warmup), more)


def test_a_measurement_just_as_the_warm_up_ends_counts():
    # 0.2 has no exact binary form: the measurement after four fifths of the epoch comes at the share 0.8.
    planned("dpo", spa(0.2, 0.8), "training.num_train_epochs=1")
    planned("dpo", spa(0.1, 0.3), "training.num_train_epochs=1")
    with pytest.raises(ConfigError, match="comes at 0.8, so it would never act"):
        planned("dpo", spa(0.2, 0.81), "training.num_train_epochs=1")


def test_a_component_that_starts_apart_from_its_reference_may_measure_once_if_it_needs_no_warm_up():
    apart = ("loop.reference=initial", "training.num_train_epochs=1")
    later = "objective.smoother={by_iteration: [none, {name: spa, threshold_scope: dataset, refresh: 1.0, warmup: W}]}"
    planned("iterative-dpo", *apart, later.replace("W", "0.0"))
    with pytest.raises(ConfigError, match="iteration 2 has .*the last one comes at 0, so it would never act"):
        planned("iterative-dpo", *apart, later.replace("W", "0.2"))


def test_a_warm_up_without_end_says_that_nothing_shall_act():
    planned("dpo", spa(5.0, 1), "training.num_train_epochs=1")
    assert planned("spa", "objective.smoother.threshold_scope=dataset").iterations[0].objective.smoother.warmup == 1

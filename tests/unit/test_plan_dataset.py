"""Measuring the whole training set only once, by a policy that is its own reference, is refused."""

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


def spa(refresh):
    return f"objective.smoother={{name: spa, threshold_scope: dataset, refresh: {refresh}, extrapolation: 0.0}}"


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

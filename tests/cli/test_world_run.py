"""The built-in world through the whole loop, small: its figures are recomputed here from the files a run leaves."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import sera_core
from sera_core import configfile
from sera_core.data.tables import read_candidates, read_pairs
from sera_core.world.gold import Gold
from sera_core.world.policy import Recipe, cached_policy

SMALL = (
    "source={name: world, pairs: 64, evaluation: 16, validation: 16, fresh: 0}",
    "training.per_device_train_batch_size=16",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache in which the world's initial policy is one that was trained in seconds."""
    folder = tmp_path_factory.mktemp("cache")
    quick = Recipe(hidden=32, feed_forward=64, demos=1024, steps=120, batch=32, learning_rate=5e-3)
    made = cached_policy(0, folder, recipe=quick)
    made.rename(made.with_name(f"policy-seed0-{Recipe().digest()}"))
    return folder


@pytest.fixture(scope="module")
def runs(cache, tmp_path_factory):
    """The folders of a DPO run and a SeRA run on the same 64 pairs."""
    folder = tmp_path_factory.mktemp("world")
    for preset, more in (("dpo", ()), ("sera-dpo", ("loop.iterations=2",))):
        config = configfile.override(configfile.read(configfile.locate(preset)), [*SMALL, *more])
        sera_core.run(config, out=folder / preset, cache=cache)
    return folder


def report(folder, iteration=1):
    return json.loads((folder / f"iter_{iteration}" / "report.json").read_text(encoding="utf-8"))


def samples(folder, where):
    return read_candidates(folder / where / "candidates.arrow").flat()


def log_probs(model, responses):
    """Summed log-probs by plain forward passes, one response at a time."""
    policy = AutoModelForCausalLM.from_pretrained(model)
    sums = []
    for response in responses:
        ids = torch.tensor([[*response.prompt.ids.tolist(), *response.ids.tolist()]])
        with torch.no_grad():
            logps = policy(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        sums.append(float(logps[len(response.prompt.ids) - 1 :].sum()))
    return np.array(sums)


def test_the_win_rate_counts_verdicts_of_the_gold_reward(runs):
    found = report(runs / "dpo")
    own = Gold().grade(samples(runs / "dpo", "iter_1/sample"))
    base = Gold().grade(samples(runs / "dpo", "iter_0/sample"))
    points = np.where(np.abs(own - base) < 1e-9, 0.5, own > base)
    assert len(own) == found["win_rate_vs_initial"]["n"] == found["gold_reward"]["n"] == 16
    assert found["win_rate_vs_initial"]["mean"] == pytest.approx(points.mean())
    assert found["gold_reward"]["mean"] == pytest.approx(own.mean())
    for name in ("win_rate_vs_initial", "gold_reward"):
        assert found[name]["low"] < found[name]["mean"] < found[name]["high"]


def test_kl_is_the_mean_log_ratio_of_samples_at_temperature_one(runs):
    found = report(runs / "dpo")
    drawn = samples(runs / "dpo", "iter_1/ancestral")
    initial = json.loads((runs / "dpo/manifest.json").read_text(encoding="utf-8"))["initial_policy"]["path"]
    ratios = log_probs(runs / "dpo/model", drawn) - log_probs(initial, drawn)
    assert found["kl_to_initial"] == pytest.approx(ratios.mean(), abs=1e-4)
    assert found["kl_interval"]["mean"] == found["kl_to_initial"] != 0.0


def test_held_out_figures_come_from_margins_against_the_initial_policy(runs):
    found = report(runs / "dpo")
    pairs = read_pairs(runs / "dpo/data/validation.arrow").pairs
    initial = json.loads((runs / "dpo/manifest.json").read_text(encoding="utf-8"))["initial_policy"]["path"]
    both = (*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs))
    chosen, rejected = np.split(log_probs(runs / "dpo/model", both) - log_probs(initial, both), 2)
    assert found["margin_mean"] == pytest.approx((chosen - rejected).mean(), abs=1e-4)
    assert found["accuracy"] == pytest.approx((chosen > rejected).mean())
    assert found["chosen_logp_drift"] == pytest.approx(chosen.mean(), abs=1e-4)


def test_the_world_adds_its_diagnostics(runs):
    found = report(runs / "sera-dpo", 2)
    assert {"filler", "coverage", "right", "extra", "eos_rate"} == set(found["diagnostics"])
    assert found["diagnostics"]["eos_rate"] == pytest.approx(found["eos_rate"])
    assert {"accuracy", "length_correlation", "gold_correlation"} == set(found["probes"]["rho0"])
    assert 0.0 <= found["selection"]["offline"]["flip_auc"] <= 1.0
    assert 0.0 <= found["selection"]["generated"]["accuracy"] <= 1.0
    assert found["selection"]["offline"]["flipped_share"] == pytest.approx(0.2, abs=0.15)
    assert found["reward_gold_correlation"] is not None


def test_kl_stands_beside_every_win_rate(runs, here):
    for summary in json.loads(here("compare", runs / "dpo", runs / "sera-dpo", "--json")):
        for iteration in summary["iterations"]:
            assert iteration["win_rate_vs_initial"] is not None
            assert iteration["kl_to_initial"] is not None
    heading = here("compare", runs / "dpo", runs / "sera-dpo").splitlines()[2]
    assert heading.index("win rate") < heading.index("KL") < heading.index("gold reward")


def test_the_initial_policy_is_reused_and_reported_before_the_first_stage(cache, runs, tmp_path):
    heard = []

    class Heard:
        def stage_started(self, where):
            heard.append(where)
            return lambda done, total: None

        def stage_finished(self, where, seconds, reused):
            pass

        def iteration_finished(self, values):
            heard.append(values["win_rate_vs_initial"]["n"])

    config = configfile.override(configfile.read(configfile.locate("dpo")), SMALL)
    sera_core.run(config, out=tmp_path, cache=cache, reporter=Heard())
    assert heard == ["policy", "data", *(f"iter_{t}/{s}" for t, s in STAGES), 16]


STAGES = ((1, "select"), (1, "train"), (0, "sample"), (1, "sample"), (1, "ancestral"), (1, "evaluate"))

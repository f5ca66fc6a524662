"""Whole runs of a tiny policy: what worst-case training leaves behind, and that radius 0 leaves nothing."""

import itertools
import json

import pytest

import sera_core
from sera_core import configfile
from sera_core.catalog import load_catalog
from sera_core.plan import make_plan
from sera_core.resolved import resolved_settings
from sera_core.testing.tiny import WORDS

METRICS = {"radius", "mass_moved", "dual_price", "worst_case_loss", "empirical_loss"}
CORE = {"weight_max", "effective_sample_size"}


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    """Two dozen conversational pairs in the tiny policy's vocabulary."""
    words = [word for word in WORDS if word not in ("what", "is")]
    rows = [
        {
            "prompt": [{"role": "user", "content": f"what is {first} and {second}"}],
            "chosen": [{"role": "assistant", "content": f"{first} is {second}"}],
            "rejected": [{"role": "assistant", "content": " ".join(["not", second, "red"][: 2 + i % 2])}],
        }
        for i, (first, second) in enumerate(itertools.islice(itertools.permutations(words, 2), 24))
    ]
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(pairs_file, tiny_model_dir, tmp_path_factory):
    """Run a preset with these settings changed, and give its folder; runs share a cache."""
    folder = tmp_path_factory.mktemp("runs")

    def run(preset, *overrides):
        tiny = (
            f"source={pairs_file}",
            f"policy.model={tiny_model_dir}",
            "tokens.max_prompt_tokens=32",
            "tokens.max_response_tokens=16",
            "training.per_device_train_batch_size=4",
            "training.gradient_accumulation_steps=2",
            "training.learning_rate=1.0e-2",
            "training.num_train_epochs=2",
            "evaluation.sampling.max_new_tokens=4",
        )
        config = configfile.override(configfile.read(configfile.locate(preset)), [*tiny, *overrides])
        out = folder / str(len(list(folder.iterdir())))
        return sera_core.run(config, out=out, cache=folder / "cache").out

    return run


@pytest.fixture(scope="module")
def dpo(trained):
    return weights_of(trained("dpo"))


def weights_of(out):
    return (out / "model" / "model.safetensors").read_bytes()


def steps_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_run_reports_how_every_step_was_weighed(trained, dpo):
    out = trained("dro-dpo")
    steps = steps_of(out)
    assert len(steps) == 6
    assert all(set(step) >= METRICS | CORE for step in steps)
    assert all(step["radius"] == 0.05 and 0 < step["mass_moved"] < 1 for step in steps)
    assert all(step["worst_case_loss"] > step["empirical_loss"] > 0 for step in steps)
    # At the start all confidences are equal: one weight for all pairs, and an effective sample of all of them.
    assert steps[0]["effective_sample_size"] == pytest.approx(8)
    assert steps[-1]["effective_sample_size"] < 8
    assert weights_of(out) != dpo


@pytest.mark.parametrize(
    "override",
    [
        "objective.reweighter={name: wasserstein, radius: 0.0}",
        "objective.reweighter={name: wasserstein, radius: 0.0, method: program, gradient: literal}",
        "objective.reweighter={name: wasserstein, radius: 0.0, scope: dataset, group_size: 5, refresh: 0.5}",
        "objective.smoother={name: label_flip, radius: 0.0}",
    ],
)
def test_neutral_settings_train_the_same_policy_bit_for_bit(trained, dpo, override):
    assert weights_of(trained("dpo", override)) == dpo


def test_a_schedule_acts_and_stands_in_the_manifest(trained):
    out = trained("dro-dpo", "objective.reweighter.radius={start: 0.0, end: 0.06, until: 0.5}")
    assert [step["radius"] for step in steps_of(out)] == pytest.approx([0.0, 0.02, 0.04, 0.06, 0.06, 0.06])
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["config"][0]["objective"]["reweighter"]["radius"] == {"start": 0.0, "end": 0.06, "until": 0.5}


def test_the_whole_training_set_can_be_weighed_in_groups(trained, dpo):
    out = trained("dro-dpo", "objective.reweighter={name: wasserstein, scope: dataset, group_size: 10}")
    steps = steps_of(out)
    assert any("grouping_error" in step for step in steps)
    assert weights_of(out) != dpo


@pytest.mark.parametrize("name", ["kl", "wasserstein_discrete"])
def test_other_reweighters_report_their_worst_case(trained, dpo, name):
    out = trained("dpo", f"objective.reweighter={name}")
    assert all({"worst_case_loss", "empirical_loss"} | CORE <= set(step) for step in steps_of(out))
    assert weights_of(out) != dpo


def test_label_flips_change_training(trained, dpo):
    assert weights_of(trained("dpo", "objective.smoother={name: label_flip, radius: 0.2}")) != dpo


@pytest.mark.parametrize("preset", ["dro-dpo", "sera-dro-dpo"])
def test_presets_state_every_option(preset):
    plan = make_plan(configfile.read(configfile.locate(preset)), load_catalog())
    stated = resolved_settings(plan, plan.iterations[0])["objective"]["reweighter"]
    assert stated["radius"] == 0.05
    assert (stated["method"], stated["gradient"], stated["scope"]) == ("exact", "envelope", "batch")
    assert json.dumps(stated)

"""The preset spa on a small world, end to end; its labels are recomputed here from the models a run leaves."""

import numpy as np
import pytest
from spa_runs import read, rewards_of_pairs, run, steps_of, weights_of

from sera_core.data.tables import read_candidates, read_pairs
from sera_core.world.policy import Recipe, cached_policy

SMALL = (
    "source={name: world, pairs: 160, evaluation: 16, validation: 16, fresh: 96}",
    "training.per_device_train_batch_size=4",
    "training.gradient_accumulation_steps=2",
)
# One round instead of three, and little to measure.
SHORT = (
    *SMALL,
    "loop.iterations=2",
    "generated.disjoint=false",
    "generated.limit=32",
    "evaluation.prompts=2",
    "evaluation.kl_prompts=2",
    "training.warmup_steps=0",
    "training.learning_rate=1.0e-3",
)
ROUND = "objective.smoother.extrapolation={by_iteration: [0.0, 0.5]}"
OWN = {"threshold", "flagged", "refining"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for runs, in whose cache the world's initial policy is one that was trained in seconds."""
    folder = tmp_path_factory.mktemp("spa")
    quick = Recipe(hidden=32, feed_forward=64, demos=1024, steps=120, batch=32, learning_rate=5e-3)
    made = cached_policy(0, folder / "cache", recipe=quick)
    made.rename(made.with_name(f"policy-seed0-{Recipe().digest()}"))
    return folder


@pytest.fixture(scope="module")
def spa(folder):
    return run(folder, "spa", *SMALL)


def test_a_seed_then_three_rounds_of_own_pairs(spa):
    reports = read(spa, "summary.json")["iterations"]
    assert [r["pairs_offline"] for r in reports] == [16, 0, 0, 0]
    assert reports[0]["pairs_generated"] == 0
    for iteration, found in enumerate(reports[1:], start=2):
        assert 16 < found["pairs_generated"] <= 32
        dropped = read(spa, f"iter_{iteration}/report.json")["dropped"]
        assert found["pairs_generated"] + sum(dropped.values()) == 32
        reasons = {name.removeprefix("generated.") for name in dropped}
        assert reasons <= {"tied_scores", "too_few_distinct", "empty_response"}


def test_rounds_ask_fresh_prompts_once(spa):
    asked = [
        [prompt.id for prompt in read_candidates(spa / f"iter_{t}/generate/candidates.arrow").prompts]
        for t in (2, 3, 4)
    ]
    everything = [name for names in asked for name in names]
    assert len(set(everything)) == len(everything) == 96
    assert all(name.startswith("fresh-") for name in everything)


@pytest.mark.parametrize("iteration", [2, 4])
def test_labels_follow_the_newest_iterate_against_the_initial_policy(spa, iteration):
    pairs = read_pairs(spa / f"iter_{iteration}/label/pairs.arrow").pairs
    initial = read(spa, "manifest.json")["initial_policy"]["path"]
    chosen, rejected = rewards_of_pairs(pairs, spa / f"iter_{iteration - 1}/train/model", initial)
    assert (chosen > rejected).all()
    confidences = 1 / (1 + np.exp(-0.1 * (chosen - rejected)))
    np.testing.assert_allclose([pair.confidence for pair in pairs], confidences, atol=1e-5)


def test_refinement_waits_for_the_rounds_and_their_warm_up(spa):
    steps = steps_of(spa)
    assert all(set(step) >= OWN for step in steps)
    assert not any(step["refining"] for step in steps if step["iteration"] == 1)
    for iteration in (2, 3, 4):
        round_ = [step for step in steps if step["iteration"] == iteration]
        acts = [(k / len(round_)) >= 0.2 for k in range(len(round_))]
        assert [step["refining"] == 1.0 for step in round_] == acts
        assert all(step["flagged"] == 0 for step in round_ if not step["refining"])
    assert any(step["flagged"] > 0 for step in steps)
    assert all(0 < step["threshold"] < 1 for step in steps)


def test_the_seed_only_baseline_is_the_first_iteration(spa, folder):
    out = run(folder, "spa-seed-only", *SMALL, "evaluation.prompts=2")
    assert weights_of(out / "model") == weights_of(spa / "iter_1/train/model")
    assert weights_of(out / "model") != weights_of(spa / "model")


def test_neutral_refinement_is_no_refinement_bit_for_bit(folder):
    plain = weights_of(run(folder, "spa-no-refinement", *SHORT) / "model")
    for neutral in ("alpha=0.0", "warmup=1.0"):
        assert weights_of(run(folder, "spa", *SHORT, ROUND, f"objective.smoother.{neutral}") / "model") == plain
    refined, decoupled = run(folder, "spa", *SHORT, ROUND), run(folder, "spa-no-decoupling", *SHORT)
    assert weights_of(refined / "model") != plain
    thresholds = [
        [step["threshold"] for step in steps_of(out) if step["iteration"] == 2] for out in (refined, decoupled)
    ]
    # Before the first step of a round policy and reference are one.
    assert (thresholds[0][0], thresholds[1][0]) == (0.5, 0.5)
    assert thresholds[0][1:] != thresholds[1][1:]


def test_the_released_code_runs(folder):
    out = run(folder, "spa-official-code", *SHORT)
    steps = steps_of(out)
    assert {step["iteration"] for step in steps} == {1, 2}
    assert all(set(step) >= OWN for step in steps)
    # 50 entries are never reached with 32 pairs, so that tau stays at margin 0.
    assert all(step["threshold"] == 0 for step in steps)
    assert any(step["flagged"] > 0 for step in steps)

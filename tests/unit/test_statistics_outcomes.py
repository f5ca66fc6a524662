"""Outcomes read from run folders: means by prompt, nulls, runs without evidence, iterations, unfinished runs."""

import json

import numpy as np
import pytest

from sera_core.errors import DataError, StoreError
from sera_core.evidence import ANCESTRAL, HELD_OUT, SAMPLES, write_evidence
from sera_core.statistics.intervals import WHOLE
from sera_core.statistics.metrics import ACCURACY, ENDED, GOLD, KL, LENGTH, MARGIN, WIN_RATE
from sera_core.statistics.outcomes import final_iteration, read_outcomes, reported

REPORT = {
    "win_rate_vs_initial": {"mean": 0.625, "low": 0.1, "high": 0.9, "n": 2},
    "gold_reward": None,
    "kl_to_initial": 1.5,
    "response_length": 4.0,
    "eos_rate": 0.75,
    "accuracy": 0.5,
    "margin_mean": 0.25,
}
SAMPLED = {
    "prompt": ["b", "b", "a", "a", "c"],
    "points": np.array([1.0, 0.5, 0.5, np.nan, np.nan]),
    "gold": None,
    "reward": np.zeros(5),
    "length": [2, 4, 6, 8, 1],
    "ended": [True, False, True, True, True],
}
PAIRS = {
    "prompt": ["q", "r", "r"],
    "margin": np.array([0.0, 2.0, -1.0]),
    "chosen_length": [1, 1, 1],
    "rejected_length": [1, 1, 1],
}
DRAWN = {"prompt": ["a", "b"], "log_ratio": np.array([1.0, 2.0])}


def run_in(folder, iterations=1, *, evidence=True, final=None, **changes):
    for number in range(1, iterations + 1):
        stage = folder / f"iter_{number}" / "evaluate"
        stage.mkdir(parents=True)
        (stage.parent / "report.json").write_text(json.dumps({**REPORT, "iteration": number, **changes}))
        if evidence:
            write_evidence(
                stage / "samples.arrow", SAMPLES, {**SAMPLED, "length": [number] * 5} if number > 1 else SAMPLED
            )
            write_evidence(stage / "pairs.arrow", HELD_OUT, PAIRS)
            write_evidence(stage / "ancestral.arrow", ANCESTRAL, DRAWN)
    (folder / "manifest.json").write_text(json.dumps({"final_iteration": iterations if final is None else final}))
    return folder


@pytest.mark.parametrize(
    ("metric", "wanted"),
    [
        (WIN_RATE, {"a": 0.5, "b": 0.75}),
        (KL, {"a": 1.0, "b": 2.0}),
        (LENGTH, {"a": 7.0, "b": 3.0, "c": 1.0}),
        (ENDED, {"a": 1.0, "b": 0.5, "c": 1.0}),
        (ACCURACY, {"q": 0.5, "r": 0.5}),
        (MARGIN, {"q": 0.0, "r": 0.5}),
    ],
)
def test_samples_of_a_prompt_are_averaged_and_prompts_without_any_left_out(tmp_path, metric, wanted):
    found = read_outcomes({3: run_in(tmp_path)}, metric)
    assert found == {3: wanted}
    assert list(found[3]) == sorted(wanted)


def test_runs_without_the_metric_are_left_out(tmp_path):
    assert read_outcomes({0: run_in(tmp_path)}, GOLD) == {}


def test_a_run_without_evidence_gives_its_reports_value(tmp_path):
    runs = {0: run_in(tmp_path / "old", evidence=False), 1: run_in(tmp_path / "new")}
    assert read_outcomes(runs, WIN_RATE) == {0: {WHOLE: 0.625}, 1: {"a": 0.5, "b": 0.75}}


def test_the_final_iteration_is_read_unless_another_is_asked_for(tmp_path):
    runs = {0: run_in(tmp_path / "long", 3, final=2), 1: run_in(tmp_path / "short", 1)}
    assert [found["a"] for found in read_outcomes(runs, LENGTH).values()] == [2, 7]
    assert {seed: found["a"] for seed, found in read_outcomes(runs, LENGTH, iteration=3).items()} == {0: 3}
    assert read_outcomes(runs, LENGTH, iteration=4) == {}


def test_unfinished_runs_are_refused(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match=r"holds no finished run.*continues"):
            read_outcomes({0: folder}, KL)
    assert final_iteration(run_in(tmp_path / "run", 2)) == 2


def test_damaged_evidence_is_refused(tmp_path):
    run = run_in(tmp_path)
    (run / "iter_1" / "evaluate" / "ancestral.arrow").write_bytes(b"no table")
    with pytest.raises(StoreError, match=r"ancestral\.arrow cannot be read"):
        read_outcomes({0: run}, KL)


def test_numbers_of_a_report():
    assert (reported(REPORT, "win_rate_vs_initial"), reported(REPORT, "kl_to_initial")) == (0.625, 1.5)
    assert (reported(REPORT, "gold_reward"), reported(REPORT, "unheard of")) == (None, None)

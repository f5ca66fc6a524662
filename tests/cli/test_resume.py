"""Kill -9 during any stage, give the same command again: it continues, and every file ends as if nothing had been."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killed_runs import LONGER

from sera_core.testing.artefacts import artefact_hashes
from sera_core.workspace import read_json

SCRIPT = Path(__file__).with_name("killed_runs.py")

# Where the run is killed -> the first stage that must be computed when the command is given again; "" for none.
MOMENTS = {
    "step:iter_1:4": "iter_1/train",
    "progress:iter_1/evaluate:1": "iter_1/evaluate",
    "progress:iter_2/generate:3": "iter_2/generate",
    "torn:iter_2/generate.partial/candidates.arrow": "iter_2/generate",
    "half:iter_2/measure.partial/generated.safetensors": "iter_2/measure",
    "torn:iter_2/select.partial/pairs.arrow": "iter_2/select",
    "step:iter_2:14": "iter_2/train",
    "torn:iter_2/evaluate.partial/stage.json": "iter_2/evaluate",
    "torn:run/summary.json": "",
}
MORE = {
    "torn:data.partial/pairs.arrow": "data",
    "torn:run/manifest.json": "iter_1/select",
    "progress:iter_1/train:1": "iter_1/train",
    "step:iter_1:12": "iter_1/train",
    "before:iter_1/train.partial/model": "iter_1/train",
    "torn:iter_1/train.partial/stage.json": "iter_1/train",
    "before:run/iter_1/train": "iter_1/train",
    "after:run/iter_1/train": "iter_0/sample",
    "torn:iter_1/report.json": "iter_2/generate",
    "start:iter_2/measure": "iter_2/measure",
    "start:iter_2/score": "iter_2/score",
    "torn:iter_2/label.partial/pairs.arrow": "iter_2/label",
    "torn:iter_2/select.partial/selection.json": "iter_2/select",
    "progress:iter_2/sample:1": "iter_2/sample",
    "torn:.logps": "iter_1/train",
    "link:model.linking/model.safetensors": "",
    "before:run/model": "",
}


def outcomes(tiny, environment, folder, moments):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), "sera-dpo", str(tiny.model), str(tiny.pairs), *moments],
        capture_output=True,
        text=True,
        timeout=280,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def results(tiny, environment, tmp_path_factory):
    return outcomes(tiny, environment, tmp_path_factory.mktemp("killed"), MOMENTS)


@pytest.fixture(scope="module")
def more_results(tiny, environment, tmp_path_factory):
    return outcomes(tiny, environment, tmp_path_factory.mktemp("killed"), MORE)


def assert_continued(killed, whole, first):
    assert killed["signal"] == signal.SIGKILL
    differing = {name for name in whole["hashes"] if killed["hashes"].get(name) != whole["hashes"][name]}
    assert not differing
    assert set(killed["hashes"]) == set(whole["hashes"])
    # The policy is resolved anew each time; from `first` on everything is computed, before it nothing.
    _, *stages = whole["computed"]
    assert killed["computed"][1:] == (stages[stages.index(first) :] if first else [])


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_given_again_the_run_ends_with_the_same_files(results, moment):
    assert_continued(results[moment], results["never"], MOMENTS[moment])


@pytest.mark.slow
@pytest.mark.parametrize("moment", MORE)
def test_the_same_at_more_moments(more_results, moment):
    assert_continued(more_results[moment], more_results["never"], MORE[moment])


def test_the_hashes_cover_what_a_run_writes(results):
    names = results["never"]["hashes"]
    assert {
        "manifest.json",
        "metrics.jsonl",
        "summary.json",
        "data/pairs.arrow",
        "iter_1/report.json",
        "iter_1/evaluate/evaluation.json",
        "iter_1/evaluate/samples.arrow",
        "iter_1/evaluate/pairs.arrow",
        "iter_1/evaluate/ancestral.arrow",
        "iter_2/generate/candidates.arrow",
        "iter_2/select/pairs.arrow",
        "iter_2/train/steps.jsonl",
        "iter_2/train/pairs.arrow",
        "iter_2/train/model/model.safetensors",
        "model/model.safetensors",
        "model/README.md",
    } <= set(names)
    assert names["iter_1/train/steps.jsonl"] != names["iter_2/train/steps.jsonl"]
    assert names["iter_1/train/model/model.safetensors"] != names["model/model.safetensors"]


def test_a_torn_file_was_really_there(results):
    before = results["torn:iter_2/generate.partial/candidates.arrow"]["before"]
    assert [name for name in before if name.startswith("iter_2/generate.partial/.candidates.arrow")]
    assert "iter_2/generate/candidates.arrow" not in before


def test_training_goes_on_from_its_last_checkpoint(results):
    killed = results["step:iter_2:14"]
    assert "iter_2/train.partial/checkpoint-10/complete.json" in killed["before"]
    assert killed["steps"] == {"2": 11}
    assert results["step:iter_1:4"]["steps"] == {"1": 1, "2": 1}
    assert results["never"]["steps"] == {"1": 1, "2": 1}


def test_artefact_hashes_see_content_and_neither_time_nor_place(tmp_path):
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        folder = tmp_path / name
        (folder / "iter_1").mkdir(parents=True)
        value = {"seconds": {"train": seconds}, "kept": 1, "final_model": str(folder.resolve() / "model")}
        (folder / "summary.json").write_text(json.dumps(value), encoding="utf-8")
        (folder / "iter_1" / "stage.json").write_text(json.dumps({"seconds": seconds}), encoding="utf-8")
        (folder / ".lock").touch()
    assert artefact_hashes(tmp_path / "a") == artefact_hashes(tmp_path / "b")
    assert set(artefact_hashes(tmp_path / "a")) == {"summary.json"}
    (tmp_path / "b" / "summary.json").write_text(json.dumps({**value, "kept": 2}), encoding="utf-8")
    (tmp_path / "b" / "iter_1" / "pairs.arrow.partial").touch()
    assert artefact_hashes(tmp_path / "a")["summary.json"] != artefact_hashes(tmp_path / "b")["summary.json"]
    assert "iter_1/pairs.arrow.partial" in artefact_hashes(tmp_path / "b")


def test_the_command_itself_killed_in_training_and_given_again(tiny, sera, environment, tmp_path):
    command = ["run", "dpo", *tiny.overrides("dpo", *LONGER[:1], "training.num_train_epochs=8")]
    for name in ("whole", "killed"):
        arguments = [*command, "--out", str(tmp_path / name), "--cache", str(tmp_path / f"{name}-cache")]
        if name == "killed":
            kill_when_sealed([sera.path, *arguments], tmp_path / name / "iter_1", environment)
        sera(*arguments)
    assert artefact_hashes(tmp_path / "killed") == artefact_hashes(tmp_path / "whole")
    assert read_json(tmp_path / "killed/summary.json")["iterations"][0]["pairs_offline"] == 24


def kill_when_sealed(command, folder, environment):
    """Start the command, and kill it as soon as the first checkpoint is complete."""
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list(folder.glob("train.partial/checkpoint-*/complete.json")):
            assert process.poll() is None, "the command ended before its first checkpoint"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "train").exists()

"""A run on two processes: the same weights as on one, one voice, and continued after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from killed_runs import LONGER
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sera_core import ranks, run
from sera_core.data.tables import read_pairs
from sera_core.errors import ConfigError, SeraError, StoreError
from sera_core.testing.artefacts import artefact_hashes
from sera_core.workspace import Workspace, read_json

SCRIPT = Path(__file__).with_name("ranked_runs.py")
SPLITS = {"one": (8, 1), "accumulated": (4, 2)}
# The second weighs by order: where margins are rounding errors, these must not decide.
PRESETS = ("sera-dpo", "sera-dro-dpo")
STAGES = ("iter_1/train", "iter_2/train")
SEALED = "iter_1/train.partial/checkpoint-*/complete.json"

# Name -> overrides, what else is done to the launch, words of the message.
ERRORS = {
    "on-every-rank": (("objective.loss.beta=-1",), {}, "beta"),
    "while-others-wait": (("policy.model={broken}",), {}, "Scoring with"),
    "in-every-training": (("training.learning_rate=1.0e38", "training.max_grad_norm=0"), {}, "lower training.learning"),
    "in-training-on-rank-0": ((), {"break": 0}, "This rank is broken."),
    "in-training-on-rank-1": ((), {"break": 1}, "This rank is broken."),
    "at-the-lock": ((), {}, "Another process is running"),
}


def launch(environment, launches):
    """How both ranks of each launch ended: exit codes, standard output and error by rank, seconds."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        input=json.dumps(launches),
        capture_output=True,
        text=True,
        timeout=280,
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def named(split, preset):
    """The folder of a preset's run with the effective batch split in a way."""
    return split if preset == "sera-dpo" else f"{split}-{preset}"


def command(tiny, folder, name, *more, preset="sera-dpo", cache=None):
    overrides = tiny.overrides(preset, *more)
    return ["run", preset, *overrides, "--out", str(folder / name), "--cache", str(cache or folder / f"{name}-cache")]


def broken_model(tiny, folder):
    """The tiny model with weights that are not finite."""
    model = AutoModelForCausalLM.from_pretrained(tiny.model)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny.model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """Where all runs are; those on one process are done."""
    root = tmp_path_factory.mktemp("ranks")
    for name, (size, steps) in SPLITS.items():
        split = (f"training.per_device_train_batch_size={size}", f"training.gradient_accumulation_steps={steps}")
        for preset in PRESETS:
            run(tiny.config(preset, *split), out=root / named(name, preset), cache=root / f"{name}-cache")
    return root


@pytest.fixture(scope="module")
def launches(tiny, environment, folder):
    """How all launches of two ranks ended, by name."""
    two = command(tiny, folder, "two")
    longer = (LONGER[0], "training.num_train_epochs=8")
    whole, cut = (command(tiny, folder, name, *longer, preset="dpo") for name in ("whole", "cut"))
    wanted = {
        "two": {"arguments": [*two, "--json"]},
        "two weighed": {"arguments": command(tiny, folder, named("two", PRESETS[1]), preset=PRESETS[1])},
        "two again": {"arguments": two},
        "shared": {"arguments": command(tiny, folder, "shared", cache=folder / "one-cache")},
        "plan": {"arguments": ["run", "dpo", "--plan"]},
        "whole": {"arguments": whole},
        "cut": {"arguments": cut, "folder": str(folder / "cut"), "kill": SEALED},
        "cut again": {"arguments": cut},
    }
    broken = broken_model(tiny, folder / "broken")
    for name, (more, changes, _) in ERRORS.items():
        given = [text.format(broken=broken) for text in more]
        wanted[name] = {"arguments": command(tiny, folder, name, *given, preset="dpo"), **changes}
    (folder / "at-the-lock").mkdir()
    with FileLock(folder / "at-the-lock" / ".lock"):
        return launch(environment, wanted)


def steps(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def stages(ended):
    """Whether each stage was reused, in order, as rank 0 printed it."""
    lines = [line for line in ended["out"][0].splitlines() if "✓" in line]
    return {line.split()[1]: line.endswith("reused") for line in lines}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("other", ["accumulated", "two"])
def test_the_split_of_the_effective_batch_does_not_matter(folder, launches, other, preset):
    names = named("one", preset), named(other, preset)
    for where in (*(f"{stage}/model" for stage in STAGES), "model"):
        one, split = (load_file(folder / name / where / "model.safetensors") for name in names)
        for key, value in one.items():
            torch.testing.assert_close(split[key], value, rtol=0, atol=1e-5)
    for iteration in (1, 2):
        ids = [read_pairs(folder / name / f"iter_{iteration}/select/pairs.arrow").pairs for name in names]
        assert [pair.id for pair in ids[0]] == [pair.id for pair in ids[1]]
    one, split = (steps(folder / name) for name in names)
    assert len(one) == len(split) == 6
    for record, its in zip(one, split, strict=True):
        # Of margins that are rounding errors, as after a first step of learning rate 0, the signs are too.
        signs = {"accuracy", "chosen_below_reference"} if abs(record["margin_mean"]) < 1e-5 else set()
        close = {name: value for name, value in record.items() if name not in signs}
        assert its.keys() == record.keys()
        assert {name: its[name] for name in close} == pytest.approx(close, rel=0, abs=1e-5)


def test_weights_moved_and_iterations_differ(folder, launches, tiny):
    models = [tiny.model, *(folder / "two" / stage / "model" for stage in STAGES)]
    first, second, third = (load_file(model / "model.safetensors") for model in models)
    for before, after in ((first, second), (second, third)):
        assert max(float((after[key] - before[key]).abs().max()) for key in before) > 1e-4


def test_rank_0_alone_speaks_and_writes(folder, launches):
    ended = launches["two"]
    assert ended["codes"] == [0, 0]
    assert json.loads(ended["out"][0]).keys() == read_json(folder / "two" / "summary.json").keys()
    assert "iter_2/train" in ended["err"][0]
    assert "Warning" not in ended["err"][0]
    assert (ended["out"][1], ended["err"][1]) == ("", "")
    assert set(artefact_hashes(folder / "two")) == set(artefact_hashes(folder / "one"))
    assert list(json.loads(launches["plan"]["out"][0])) == ["components", "iterations"]
    assert launches["plan"]["out"][1] == ""


def test_what_is_finished_is_reused(launches):
    ended = launches["two again"]
    assert ended["codes"] == [0, 0]
    found = stages(ended)
    assert len(found) == 17
    assert [name for name, reused in found.items() if not reused] == ["policy"]


def test_only_what_ranks_train_together_depends_on_their_number(launches):
    found = stages(launches["shared"])
    before = ["data", "iter_1/select", "iter_0/sample"]
    assert [name for name, reused in found.items() if reused] == before
    assert {"iter_1/train", "iter_2/generate"} <= found.keys()


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_ends_all_ranks_with_one_message(launches, name):
    ended, words = launches[name], ERRORS[name][2]
    assert ended["codes"] == [2, 2], ended["err"]
    text = "".join(ended["err"])
    assert text.startswith("Error:")
    assert text.count("Error:") == 1
    assert words in text
    assert ended["seconds"] < 20
    if "every" not in name:
        assert ended["err"][0 if name.endswith("rank-1") else 1] == ""


def test_killed_in_training_and_started_again_it_ends_with_the_same_files(folder, launches):
    codes = {name: launches[name]["codes"] for name in ("whole", "cut", "cut again")}
    assert codes == {"whole": [0, 0], "cut": [-signal.SIGKILL] * 2, "cut again": [0, 0]}
    assert artefact_hashes(folder / "cut") == artefact_hashes(folder / "whole")
    assert len(steps(folder / "cut")) == 48


LAUNCHERS = {
    "accelerate": ("accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"),
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node=2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_real_launchers(folder, launches, tiny, environment, tmp_path, launcher):
    done = subprocess.run(
        [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "sera_core", *command(tiny, tmp_path, "run")],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        artefact_hashes(tmp_path / "run")["model/model.safetensors"]
        == (artefact_hashes(folder / "two")["model/model.safetensors"])
    )
    assert done.stdout.count("Final model:") == 1


def launcher_says(monkeypatch, **variables):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


TWO = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "2"}, "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({**TWO, "ACCELERATE_USE_DEEPSPEED": "true"}, "asks for a sharded model"),
        ({"MASTER_ADDR": "here", "ACCELERATE_USE_CPU": "True"}, "it started one, or leaves them to MPI"),
    ],
)
def test_launchers_a_run_cannot_follow(monkeypatch, variables, words):
    launcher_says(monkeypatch, **variables)
    with pytest.raises(ConfigError, match=words):
        ranks.join()


@pytest.mark.parametrize(
    ("gpus", "mps", "variables", "words"),
    [
        (0, True, {}, "need CUDA GPUs or CPUs"),
        (2, False, {"ACCELERATE_USE_CPU": "True"}, "would use the GPU"),
        (1, False, {"LOCAL_WORLD_SIZE": "2"}, "2 processes were started for 1 GPUs"),
        (1, False, {"LOCAL_RANK": "1"}, "2 processes were started for 1 GPUs"),
    ],
)
def test_devices_that_several_processes_cannot_use(monkeypatch, gpus, mps, variables, words):
    launcher_says(monkeypatch, **{**TWO, **variables})
    with pytest.raises(ConfigError, match=words):
        ranks._check_launcher(gpus, mps)


def test_ranks_on_another_disk_are_refused(tmp_path):
    class Far(ranks.Ranks):
        rank, world = 1, 2

        def on_main(self, compute):
            return None

    with pytest.raises(StoreError, match="Rank 1 does not see the files of rank 0"):
        Workspace(tmp_path / "run", tmp_path / "cache", Far()).__enter__()


def test_one_process_agrees_with_itself():
    alone = ranks.Ranks()
    said = []
    assert (alone.main, alone.rank, alone.world) == (True, 0, 1)
    assert alone.broadcast("x") == alone.on_main(lambda: "x") == alone.main_first(lambda: "x") == "x"
    alone.wait()
    alone.tell(SeraError("x"), lambda: said.append("x"))
    assert said == ["x"]

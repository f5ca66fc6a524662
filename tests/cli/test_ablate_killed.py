"""An ablation that is killed, or loses a worker, and is given again: nothing finished is repeated, the results agree."""

import importlib.util
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from ablated_runs import assert_close, stages_by_key, timeless

from sera_core.testing.artefacts import artefact_hashes

VARIANTS = {
    "dpo": {},
    "one": {"loop": {"iterations": 2}},
    "two": {"loop": {"iterations": 2}, "objective": {"smoother": {"name": "constant", "epsilon": 0.2}}},
}
NEEDS_RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed; pip install 'sera-core[ray]'"
)


@pytest.fixture(scope="module")
def command(tiny, sera, tmp_path_factory):
    """The command of an ablation of three arms that takes some seconds, without its places."""
    folder = tmp_path_factory.mktemp("ablation")
    base = tiny.config("dpo", "training.num_train_epochs=10", "training.per_device_train_batch_size=2")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    content = {"base": "tiny.yaml", "variants": VARIANTS, "seeds": [0], "baseline": "dpo"}
    (folder / "small.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return ["ablate", str(folder / "small.yaml"), "--json"]


@pytest.fixture(scope="module")
def whole(command, sera, tmp_path_factory):
    """The folder of the same ablation, never interrupted."""
    out = tmp_path_factory.mktemp("whole")
    sera(*command, "--out", out / "a", "--cache", out / "cache")
    return out / "a"


def wait_for(found, process):
    """Wait until `found` gives something, while the command runs; what it gave."""
    deadline = time.monotonic() + 120
    while not (value := found()):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return value


def computed(cache):
    """Every finished stage in a cache, and when it was sealed."""
    return {file.parent.name: file.stat().st_mtime_ns for file in cache.glob("stages/*/stage.json")}


def assert_same(out, whole):
    assert timeless(out) == timeless(whole)
    for arm in VARIANTS:
        assert artefact_hashes(out / arm / "seed-0") == artefact_hashes(whole / arm / "seed-0")


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_killed_and_given_again_nothing_finished_is_repeated(command, whole, sera, environment, tmp_path, processes):
    out, cache = tmp_path / "a", tmp_path / "cache"
    asked = [*command, "--out", str(out), "--cache", str(cache), "--processes", str(processes)]
    with subprocess.Popen(
        [sera.path, *asked], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        # One run is finished, and another is in the middle of a training.
        wait_for(lambda: list(out.glob("*/seed-0.json")) and list(out.glob("*/seed-0/iter_*/train.partial")), process)
        process.kill()
    before, finished = computed(cache), list(out.glob("*/seed-0.json"))
    assert before
    assert finished
    sera(*asked)
    after = computed(cache)
    assert {name: after[name] for name in before} == before
    # What is in the cache was made once: no run has a copy of its own.
    assert all(len(files) == 1 for files in stages_by_key(out).values())
    assert len(after) == len(stages_by_key(whole))
    if processes == 1:
        assert_same(out, whole)
    else:
        assert_close(out, whole)


def workers(token):
    """The processes of Ray that work for the command with a token in its environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            try:
                name, environ = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
            except OSError:
                continue
            if name.startswith(b"ray::_there") and f"SERA_TEST_TOKEN={token}".encode() in environ:
                found.append(int(folder.name))
    return found


@NEEDS_RAY
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for Ray's workers in /proc")
def test_the_run_of_a_killed_ray_worker_is_taken_up_again(command, whole, sera, environment, tmp_path):
    out, cache = tmp_path / "a", tmp_path / "cache"
    asked = [*command, "--out", str(out), "--cache", str(cache), "--executor", "ray", "--cores", "2"]
    token = tmp_path.name
    with subprocess.Popen(
        [sera.path, *asked],
        env=environment | {"SERA_TEST_TOKEN": token},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for(lambda: list(out.glob("*/seed-0/iter_*/train.partial/checkpoint-*/complete.json")), process)
        killed = wait_for(lambda: workers(token), process)
        before = computed(cache)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        told = process.communicate(timeout=200)
    assert process.returncode == 0, told[1][-3000:]
    after = computed(cache)
    assert {name: after[name] for name in before} == before
    assert_close(out, whole)


@NEEDS_RAY
def test_an_arm_that_asks_for_more_than_the_machine_has_fails_alone(command, sera, tmp_path):
    file = Path(command[1]).with_name("greedy.yaml")
    content = {"base": "tiny.yaml", "variants": {"greedy": {"resources": {"gpus": 3}}}, "seeds": [0]}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    place = ("--out", tmp_path / "a", "--cache", tmp_path / "cache", "--executor", "ray", "--cores", "1")
    done = sera("ablate", file, *place, code=1)
    assert "ask for 3 GPU of 0; lower them" in " ".join(done.stdout.split())

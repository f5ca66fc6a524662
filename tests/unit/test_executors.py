"""Where runs are made: processes that die alone, budgets of cores and memory, an executor that is not there."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sera_core.ablating.config import Resources
from sera_core.ablating.jobs import Job, Result, jobs_of
from sera_core.ablating.work import Task
from sera_core.ablation import Arm, make_ablation
from sera_core.errors import ConfigError
from sera_core.executors import budget_of, make_executor
from sera_core.executors.budget import Budget, estimate
from sera_core.executors.devices import Shares, devices_here
from sera_core.executors.local import Processes

GB = 10**9


def counts_frozen(task, threads=None):
    """A run whose time is the number of objects that the garbage collector leaves alone."""
    return Result(task.job.arm.name, task.job.seed, str(task.job.out), {}, {}, seconds=float(gc.get_freeze_count()))


def test_processes_keep_what_they_hold_from_the_garbage_collector(tmp_path):
    before = gc.get_freeze_count()
    (task,) = tasks_of(tmp_path, "a")
    executor = Processes(counts_frozen, Budget(1))
    executor.start(task)
    ((_, result),) = executor.ended(60)
    executor.close()
    assert result.seconds > 1_000, result
    assert gc.get_freeze_count() == before  # this process is the caller's


def tasks_of(tmp_path, *variants):
    ablation = make_ablation(
        {"name": "t", "base": "dpo", "variants": {name: {} for name in variants}, "seeds": [0]}, Path()
    )
    return [Task(job, "", ()) for job in jobs_of(ablation, tmp_path)]


def live_or_die(task, threads=None):
    """A run by name: ``exit`` and ``kill`` die, the others take a moment; each notes that it ran."""
    job = task.job
    job.out.mkdir(parents=True)
    with (job.out / "started").open("x") as file:
        file.write(str(os.getpid()))
    if job.arm.variant == "exit":
        os._exit(3)
    if job.arm.variant == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60 if job.arm.variant == "sleep" else 0.1)
    return Result(job.arm.name, job.seed, str(job.out), {}, {})


def all_of(executor, tasks):
    """Every result, as they end."""
    left, results = list(tasks), []
    while left or len(results) < len(tasks):
        while left and executor.room(left[0]):
            executor.start(left.pop(0))
        results += [result for _, result in executor.ended(1.0)]
    return results


def test_where_a_process_dies_the_others_go_on(tmp_path):
    tasks = tasks_of(tmp_path, "long", "exit", "b", "kill", "c")
    executor = Processes(live_or_die, Budget(2))
    results = all_of(executor, tasks)
    executor.close()
    assert sorted(each.arm for each in results) == ["b", "c", "exit", "kill", "long"]
    assert all((task.job.out / "started").exists() for task in tasks)
    failed = {each.arm: each.error for each in results if each.error is not None}
    assert set(failed) == {"exit", "kill"}
    assert all("its process died" in error for error in failed.values())


def wait_until(true, seconds=20):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False


def pid_in(file):
    wait_until(lambda: file.exists() and file.read_text(encoding="utf-8"))
    return int(file.read_text(encoding="utf-8"))


def test_closing_stops_what_runs(tmp_path):
    (task,) = tasks_of(tmp_path, "sleep")
    executor = Processes(live_or_die, Budget(2))
    executor.start(task)
    pid = pid_in(task.job.out / "started")
    executor.close()
    wait_until(lambda: not alive(pid))


PARENT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_executors import Budget, Processes, live_or_die, tasks_of

if __name__ == "__main__":
    executor = Processes(live_or_die, Budget(2))
    executor.start(tasks_of(Path({out!r}), "sleep")[0])
    executor.ended(60)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_processes_end_with_their_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(tests=str(Path(__file__).parent), out=str(tmp_path)), encoding="utf-8")
    with subprocess.Popen([sys.executable, str(script)]) as parent:
        pid = pid_in(tmp_path / "sleep" / "seed-0" / "started")
        assert alive(pid)
        parent.kill()
    wait_until(lambda: not alive(pid))


def sees(task, threads=None):
    """A run whose folder is what it sees of devices."""
    time.sleep(0.1)
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    return Result(task.job.arm.name, task.job.seed, seen, {}, {})


@pytest.mark.parametrize(
    ("gpus", "at_once", "seen"),
    [
        ((1, 1), 2, [{"3"}, {"5"}]),
        ((0.5, 0.5), 2, [{"3"}, {"3"}]),
        ((0.6, 0.6), 2, [{"3"}, {"5"}]),
        ((2, 0.5), 1, [{"3,5"}, {"3"}]),
        ((0, 1), 2, [{"all"}, {"3"}]),
    ],
)
def test_runs_share_the_devices_of_the_machine(gpus, at_once, seen, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    tasks = [task_with(gpus=count, memory=0.001) for count in gpus]
    budget = Budget(4, devices=("3", "5"))
    assert budget.at_a_time(tasks) == at_once
    executor = Processes(sees, budget)
    executor.start(tasks[0])
    assert executor.room(tasks[1]) == (at_once == 2)
    found = [] if at_once == 2 else executor.ended(60)
    executor.start(tasks[1])
    while len(found) < 2:
        found += executor.ended(60)
    executor.close()
    results = {id(task): result.out for task, result in found}
    assert [{results[id(task)]} for task in tasks] == seen
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_devices_that_ended_runs_held_are_free_again():
    shares = Shares(("0", "1"))
    for count in (1, 0.3, 0.3, 0.3):
        shares.take(shares.place(count), count)
    assert shares.place(1) is None
    assert shares.place(0.5) is None
    assert shares.place(0) == ()
    shares.take(("0",), -1)
    assert (shares.place(1), shares.place(2), shares.place(0.1)) == (("0",), None, ("1",))
    for _ in range(3):
        shares.take(("1",), -0.3)
    assert shares.place(2) == ("0", "1")


def test_devices_are_called_as_the_user_called_them(monkeypatch):
    for there, count, visible, names in (
        (True, 2, "4, 7", ("4", "7")),
        (True, 2, None, ("0", "1")),
        (False, 0, None, ()),
    ):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
        monkeypatch.setattr("torch.cuda.device_count", lambda count=count: count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert devices_here() == names


@pytest.mark.parametrize(
    ("asked", "given", "message"),
    [
        ({"gpus": 2}, {"devices": ("0",)}, "Arm 'a': resources.gpus = 2, but this machine has 1. .*--executor ray"),
        ({"gpus": 0.5}, {"devices": ()}, "Arm 'a': resources.gpus = 0.5, but this machine has 0"),
        ({"cores": 4}, {"cores": 2}, "Arm 'a': resources.cores = 4 is more than the --cores 2 for all runs"),
        ({"memory": 3}, {"memory": 2 * GB}, "Arm 'a': resources.memory = 3 is more than the --memory 2 for all runs"),
    ],
)
def test_an_arm_that_asks_for_more_than_there_can_be_is_refused(asked, given, message):
    with pytest.raises(ConfigError, match=message):
        Budget(1, **given).check(task_with(**asked).job.arm)


def test_a_greedy_arm_is_refused_before_anything_is_planned_or_run(tmp_path):
    from sera_core.ablating.run import How, grid_of, run_ablation  # too much for each process that imports this file

    variants = {"dpo": {}, "greedy": {"resources": {"gpus": 2}}}
    ablation = make_ablation({"name": "t", "base": "dpo", "variants": variants, "seeds": [0]}, Path())
    how = How(cache=tmp_path / "cache", budget=Budget(1, devices=("0",)))
    for call in (grid_of, run_ablation):
        with pytest.raises(ConfigError, match="Arm 'greedy': resources.gpus = 2, but this machine has 1"):
            call(ablation, tmp_path / "out", how)
    assert not (tmp_path / "out").exists()


def test_a_cluster_has_devices_of_its_own():
    budget = budget_of("ray", None, None, None)
    budget.check(task_with(gpus=64).job.arm)
    assert budget.devices is None


class Cluster:
    """Ray as a caller has it who joined a large cluster before."""

    def __init__(self):
        self.asked = []

    def is_initialized(self):
        return True

    def remote(self, function):
        return self

    def options(self, **options):
        self.asked.append(options)
        return self

    def cluster_resources(self):
        return {"CPU": 64.0, "memory": 100.0 * GB, "GPU": 8.0}


class Remote(Cluster):
    def remote(self, *arguments):
        return object() if len(arguments) > 1 else self


@pytest.mark.parametrize(
    ("given", "asked", "beside"),
    [
        ({"cores": 2}, {}, 2),
        ({"cores": 4}, {"cores": 2}, 2),
        ({"memory": 3 * GB}, {"memory": 1}, 3),
        ({"memory": 500 * GB}, {"memory": 20}, 5),
        ({}, {"gpus": 2}, 4),
    ],
)
def test_runs_on_a_joined_cluster_keep_to_what_was_given(given, asked, beside, monkeypatch):
    cluster = Remote()
    monkeypatch.setitem(sys.modules, "ray", cluster)
    executor = make_executor("ray", live_or_die, Budget(None, here=False, **given), lambda: None)
    task = task_with(**asked)
    started = 0
    while executor.room(task):
        executor.start(task)
        started += 1
    assert started == len(cluster.asked) == beside


def task_with(cores=None, memory=None, gpus=0.0, **settings):
    arm = Arm("a", {}, settings, Resources(cores=cores, memory=memory, gpus=gpus))
    return Task(Job(arm, 0, Path()), "", ())


def test_runs_fit_by_number_cores_and_memory():
    small, large = task_with(cores=1, memory=2), task_with(cores=3, memory=6)
    assert Budget(2, cores=9).fits(small, [small])
    assert not Budget(2, cores=9).fits(small, [small, small])
    assert Budget(9, cores=4, memory=9 * GB).fits(large, [small])
    assert not Budget(9, cores=4, memory=9 * GB).fits(large, [small, small])
    assert not Budget(9, cores=9, memory=9 * GB).fits(large, [small, small])
    # Alone it runs, whatever it asks for.
    assert Budget(9, cores=1, memory=1 * GB).fits(large, [])


def test_the_number_at_a_time_is_the_smallest_of_the_three():
    plain = [task_with(memory=3)] * 9
    assert Budget(3, memory=100 * GB).at_a_time(plain) == 3
    assert Budget(9, memory=7 * GB).at_a_time(plain) == 2
    assert Budget(9, cores=4, memory=100 * GB).at_a_time([task_with(cores=2, memory=1)] * 9) == 2
    assert Budget(9, memory=1 * GB).at_a_time(plain) == 1


def test_memory_is_the_arm_s_else_measured_else_estimated(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"0" * 1000)
    task = task_with(policy={"model": str(tmp_path)})
    budget = Budget(2)
    assert budget.bytes(task) == estimate(task.job.settings) == estimate({}) + 6000
    budget.peak = 5 * GB
    assert budget.bytes(task) == 5 * GB
    assert budget.bytes(task_with(memory=2)) == 2 * GB


def test_cores_are_shared_out_as_threads():
    assert Budget(1).threads(task_with()) is None
    assert Budget(1, cores=3).threads(task_with()) == 3
    assert Budget(2, cores=4).threads(task_with()) == 2
    assert Budget(2, cores=1).threads(task_with()) == 1
    assert Budget(2, cores=4).threads(task_with(cores=3)) == 3


@pytest.mark.parametrize("name", ["processes", "cores", "memory"])
def test_budgets_are_positive(name):
    with pytest.raises(ConfigError, match=f"--{name} must be positive, got 0"):
        Budget(**{name: 0})


def test_an_unknown_executor_is_named():
    with pytest.raises(ConfigError, match=r"no executor 'rai'. Did you mean 'ray'\? Known: local, ray"):
        make_executor("rai", live_or_die, Budget(), lambda: None)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'sera-core\[ray\]'"):
        make_executor("ray", live_or_die, Budget(None), lambda: None)

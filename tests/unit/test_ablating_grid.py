"""The plan of a grid: which stages runs share, what runs next, what is left; finished runs that are not opened."""

import threading
import time
from pathlib import Path

import pytest

from sera_core.ablating.finished import job_key, keep_result, kept_result, record_of
from sera_core.ablating.foresee import foresee
from sera_core.ablating.grid import Grid, sharing
from sera_core.ablating.jobs import Job, Result, StageTime, failed, from_plain, plain
from sera_core.ablating.ledger import Ledger
from sera_core.ablating.run import check_arms
from sera_core.ablating.stages import Foreseen
from sera_core.ablating.work import Notes, Task
from sera_core.ablation import Arm, make_ablation
from sera_core.workspace import Workspace, read_json, write_json

VARIANTS = {
    "dpo": {},
    "one-epoch": {"training": {"num_train_epochs": 1}},
    "iterative": {"extends": "iterative-dpo"},
    "irm": {"extends": "irm-only"},
    "sera": {"extends": "sera-dpo"},
    "smoothed": {"extends": "cdpo"},
    "ipo": {"objective": {"loss": "ipo"}},
}


@pytest.fixture(scope="module")
def plans():
    return check_arms(make_ablation({"name": "t", "base": "dpo", "variants": VARIANTS}, Path()))


def stages(plans, name, seed=0):
    return {stage.where: stage for stage in foresee(plans[name], seed)}


def common(plans, one, other, seeds=(0, 0)):
    first, second = stages(plans, one, seeds[0]), stages(plans, other, seeds[1])
    return {w for w, stage in first.items() if w in second and second[w].signature == stage.signature}


FIRST = {"policy", "data", "iter_0/sample"}
TRAINED = {"iter_1/train", "iter_1/sample", "iter_1/ancestral", "iter_1/evaluate"}


def test_iterated_methods_share_their_first_iteration(plans):
    assert common(plans, "iterative", "one-epoch") == FIRST | TRAINED | {"iter_1/select"}
    assert common(plans, "irm", "sera") == FIRST | TRAINED | {"iter_1/select"}
    # Pairs that are all kept are the same pairs, whatever keeps them.
    assert common(plans, "iterative", "sera") == FIRST | TRAINED


def test_what_the_objective_does_not_touch_is_shared(plans):
    assert common(plans, "dpo", "smoothed") == FIRST | {"iter_1/select"}
    assert common(plans, "dpo", "ipo") == FIRST | {"iter_1/select"}


def test_nothing_is_shared_between_seeds(plans):
    assert common(plans, "sera", "sera", (0, 1)) == set()
    kinds = [{w: stage.kind for w, stage in stages(plans, "sera", seed).items()} for seed in (0, 1)]
    assert kinds[0] == kinds[1]


def test_sera_s_stages_are_those_of_its_loop(plans):
    found = stages(plans, "sera")
    assert {w.partition("/")[2] for w in found if w.startswith("iter_3")} == {
        "generate", "measure", "score", "label", "select", "train", "sample", "ancestral", "evaluate",
    }  # fmt: skip
    assert not {"iter_1/generate", "iter_1/measure"} & set(found)
    assert stages(plans, "dpo")["iter_1/train"].load == 3
    assert found["iter_1/train"].load == 1


def fake(arm, seed, *names, out=Path()):
    made = tuple(Foreseen(f"iter_1/{n}", "train", n, f"kind-{n}", "sort") for n in names)
    return Task(Job(Arm(arm, {}, {}), seed, out / arm / f"seed-{seed}"), "", made)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "cache")


def computed(ledger, tmp_path, name, seconds=2.0):
    """Pretend that the stage of a signature was computed."""
    (tmp_path / "cache" / "stages" / f"train-{name}").mkdir(parents=True)
    write_json(tmp_path / "cache" / "stages" / f"train-{name}" / "stage.json", {})
    ledger.note(Foreseen("iter_1/x", "train", name, f"kind-{name}", "sort"), name, seconds, reused=False)


def test_the_outlook_counts_shared_stages_once(ledger, tmp_path):
    computed(ledger, tmp_path, "a")
    grid = Grid([fake("x", 0, "a", "b"), fake("y", 0, "a", "c"), fake("z", 0, "b", "d")], ledger, 2)
    outlook = grid.outlook()
    assert (outlook.stages, outlook.distinct, outlook.shared, outlook.cached) == (6, 4, 2, 1)
    # b, c and d take as long as the last of their sort, two at a time.
    assert outlook.seconds == pytest.approx(3 * 2.0 / 2)


def test_a_stage_that_left_the_cache_is_to_be_computed(ledger, tmp_path):
    computed(ledger, tmp_path, "a")
    (tmp_path / "cache" / "stages" / "train-a" / "stage.json").unlink()
    assert Grid([fake("x", 0, "a")], ledger).outlook().cached == 0


def test_what_shares_work_with_a_running_task_is_put_off(ledger, tmp_path):
    x, y, z, other = fake("x", 0, "a", "b"), fake("y", 0, "a", "c"), fake("z", 0, "d"), fake("x", 1, "e")
    grid = Grid([x, y, z, other], ledger, 2)
    assert grid.best([x, y, z, other]) is x
    grid.started(x)
    # Another seed first: it shares no log-probs either.
    assert grid.best([y, z, other]) is other
    assert grid.best([y, z]) is z
    assert grid.best([y]) is y
    computed(ledger, tmp_path, "a")
    grid.look()
    assert grid.best([y, z]) is y
    assert grid.done == 1


def test_failed_runs_leave_nothing_to_wait_for(ledger):
    x, y = fake("x", 0, "a", "b"), fake("y", 0, "a", "c")
    grid = Grid([x, y], ledger)
    grid.started(x)
    grid.ended(x, failed(x.job, "broke"))
    assert (grid.outlook().cached, grid.outlook().finished) == (1, 0)
    grid.ended(y, Result("y", 0, "", {}, {}, seconds=9.0, own=5.0))
    assert (grid.done, grid.outlook().finished, grid.seconds_left()) == (3, 1, 0)


def test_time_is_unknown_until_timed_then_known_by_kind_and_sort(ledger, tmp_path):
    task = fake("x", 0, "a", "b")
    assert Grid([task], ledger).seconds_left() is None
    computed(ledger, tmp_path, "other", seconds=4.0)
    assert Grid([task], ledger).seconds_left() == 8.0
    ledger.note(Foreseen("w", "train", "a-of-seed-1", "kind-a", "sort-2"), "k", 1.0, reused=False)
    assert Grid([task], ledger).seconds_left() == 5.0


def test_an_initial_policy_keeps_the_time_it_took_at_first(ledger):
    stage = Foreseen("policy", "policy", "p", "kind", "sort")
    for seconds in (30.0, 0.1):
        ledger.note(stage, "p", seconds, reused=False)
    assert ledger.seconds(stage) == ledger.expected(stage) == 30.0


def test_sharing_counts_every_key_once():
    own = {"iter_1/train": StageTime("k1", 4.0), "data": StageTime("k0", 1.0)}
    more = {"iter_1/train": StageTime("k2", 2.0), "data": StageTime("k0", 1.0)}
    results = [Result("a", 0, "", {}, {}, stages=own), Result("b", 0, "", {}, {}, stages=more)]
    assert sharing(results) == {"stages": 4, "distinct": 3, "separately": 8.0, "together": 7.0}
    assert sharing([]) == {"stages": 0, "distinct": 0, "separately": 0, "together": 0}


def test_results_survive_their_file():
    result = Result("a", 3, "out", {"accuracy": 0.5}, {"loss": 1.0}, stages={"data": StageTime("k", 1.5)}, peak=7)
    assert from_plain(plain(result)) == result


@pytest.fixture
def finished(tmp_path):
    data = tmp_path / "pairs.jsonl"
    data.write_text("{}", encoding="utf-8")
    job = Job(Arm("a", {}, {"name": "a", "source": str(data)}), 0, tmp_path / "a" / "seed-0")
    (job.out / "iter_1").mkdir(parents=True)
    (job.out / "iter_1" / "stage.json").write_text("{}", encoding="utf-8")
    key = job_key(job, {"objective:dpo": "dpo@sera-core==1"})
    keep_result(job, key, Result("a", 0, str(job.out), {"accuracy": 0.5}, {}))
    return job, key, data


def test_a_finished_run_is_known_by_its_files(finished):
    job, key, _ = finished
    assert record_of(job).name == "seed-0.json"
    assert kept_result(job, key).report == {"accuracy": 0.5}


@pytest.mark.parametrize("change", ["missing", "touched", "longer", "more", "record"])
def test_a_run_whose_files_changed_is_opened_again(finished, change):
    job, key, _ = finished
    file = job.out / "iter_1" / "stage.json"
    if change == "missing":
        file.unlink()
    elif change == "touched":
        file.touch()
    elif change == "longer":
        file.write_text("{  }", encoding="utf-8")
    elif change == "more":
        (job.out / "model").write_text("", encoding="utf-8")
    else:
        record_of(job).write_text("{", encoding="utf-8")
    assert kept_result(job, key) is None


def test_other_settings_data_or_versions_are_another_run(finished):
    job, key, data = finished
    provenance = {"objective:dpo": "dpo@sera-core==1"}
    assert job_key(job, provenance) == key
    assert job_key(job, {"objective:dpo": "dpo@sera-core==2"}) != key
    assert job_key(Job(job.arm, 1, job.out), provenance) != key
    data.write_text("{ }", encoding="utf-8")
    assert job_key(job, provenance) != key


def test_of_two_runs_that_want_a_stage_at_once_one_computes_it(tmp_path):
    calls, stages = [], []

    def compute(folder):
        calls.append(folder)
        time.sleep(0.3)
        (folder / "value").write_text("x", encoding="utf-8")

    def go(name):
        workspace = Workspace(tmp_path / name, tmp_path / "cache")
        stages.append(workspace.stage("score", "iter_1/score", {"a": 1}, compute))

    threads = [threading.Thread(target=go, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert sorted(stage.reused for stage in stages) == [False, True]
    assert all(read_json(stage.path / "stage.json")["key"] == stages[0].key for stage in stages)


def test_one_process_at_a_time_makes_a_policy(ledger, tmp_path):
    made = Foreseen("policy", "policy", "p", "kind", "sort")
    task = Task(Job(Arm("a", {}, {}), 0, tmp_path / "a"), "", (made,))
    first, second = (Notes(task, ledger, lambda: None) for _ in range(2))
    order = []

    def follow():
        second.stage_started("policy")
        order.append("second starts")
        second.stage_finished("policy", 0.1, reused=False)

    first.stage_started("policy")
    thread = threading.Thread(target=follow)
    thread.start()
    time.sleep(0.2)
    order.append("first ends")
    first.stage_finished("policy", 30.0, reused=False)
    thread.join()
    assert order == ["first ends", "second starts"]
    assert second.policy["policy"].seconds == 30.0

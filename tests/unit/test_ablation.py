"""Ablations as data: which arms a file means, what they are compared with, and what their table says."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from scipy import stats

from sera_core.ablate import Result, jobs_of, run_all
from sera_core.ablation import locate_ablation, make_ablation, presets, read_ablation
from sera_core.ablation_table import ablation_table, difference, estimate, over_seeds
from sera_core.errors import ConfigError

HERE = Path()
CROSSED = {
    "name": "crossed",
    "base": "dpo",
    "settings": {"source": {"name": "world", "noise": 0.2}},
    "variants": {"dpo": {}, "sera": {"extends": "sera-dpo", "objective": {"loss": {"beta": 0.3}}}},
    "grid": {"source.noise": [0.0, 0.4], "step": {"short": {}, "long": {"training": {"learning_rate": 2e-4}}}},
    "seeds": [3, 4],
}


def made(**changes):
    return make_ablation({**CROSSED, **changes}, HERE)


def test_every_variant_is_crossed_with_every_point():
    arms = made().arms
    assert [arm.name for arm in arms[:4]] == [
        "dpo,noise=0.0,step=short",
        "dpo,noise=0.0,step=long",
        "dpo,noise=0.4,step=short",
        "dpo,noise=0.4,step=long",
    ]
    assert len(arms) == 8
    assert arms[3].settings["source"] == {"name": "world", "noise": 0.4}
    assert arms[3].settings["training"] == {"num_train_epochs": 3, "learning_rate": 2e-4}
    sera = arms[4].settings
    assert sera["loop"] == {"iterations": 3}
    assert sera["objective"]["loss"] == {"name": "dpo", "beta": 0.3}


def test_jobs_come_seed_by_seed_in_folders_of_their_own():
    jobs = jobs_of(made(), Path("out"))
    assert [job.seed for job in jobs] == [3] * 8 + [4] * 8
    assert len({job.out for job in jobs}) == 16
    assert jobs[0].out == Path("out/dpo,noise=0.0,step=short/seed-3")
    assert jobs[8].settings["seed"] == 4


def test_long_names_are_cut_and_stay_apart():
    texts = ["Answer well. " * 30, "Answer well. " * 30 + "Now."]
    arms = made(grid={"objective.transforms": [[{"name": "self_refinement", "prefix": text}] for text in texts]}).arms
    names = [arm.name for arm in arms]
    assert len(set(names)) == len(arms) == 4
    assert all(len(name) == 100 for name in names)
    assert [arm.settings["name"] for arm in arms] == [re.sub(r"[^\w.-]", "-", name) for name in names]


def test_a_baseline_variant_is_met_at_the_same_point():
    baseline = made(baseline="dpo").baseline
    assert baseline["sera,noise=0.4,step=long"] == "dpo,noise=0.4,step=long"
    assert "dpo,noise=0.4,step=long" not in baseline
    assert made(baseline={"sera": "dpo"}).baseline == baseline


@pytest.mark.parametrize("point", ["noise=0.0", "source.noise=0.0"])
def test_a_baseline_point_is_met_in_the_same_variant(point):
    baseline = made(baseline=point).baseline
    assert baseline == {
        f"{variant},noise=0.4,step={step}": f"{variant},noise=0.0,step={step}"
        for variant in ("dpo", "sera")
        for step in ("short", "long")
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, r"Unknown key 'sedes' in the ablation.*seeds"),
        ({"base": "dpoo"}, r"No configuration file 'dpoo'.*dpo"),
        ({"seeds": []}, r"seeds"),
        ({"seeds": [0, 1, 0]}, r"seeds: 0 is there twice"),
        ({"variants": {"..": {}}, "grid": {}}, r"called '\.' or '\.\.'"),
        ({"seeds": [0, -1]}, r"seeds: -1 is negative"),
        ({"grid": {"source.noise": []}}, r"grid.source.noise is empty"),
        ({"grid": {"seed": [1, "1"]}}, r"Two arms of the ablation are called 'dpo,seed=1'"),
        ({"baseline": "dop"}, r"baseline 'dop' is no variant and no point of the grid.*dpo"),
        ({"baseline": {"sera": "dop"}}, r"'dop' is no variant.*dpo"),
        ({"grid": {"name.of.nothing": [1]}}, r"'of' is inside 'dpo'"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        made(**changes)


def test_shipped_ablations_are_found_by_name_and_by_path():
    for name, path in presets().items():
        assert locate_ablation(name) == locate_ablation(str(path)) == path
        assert read_ablation(path).arms
    with pytest.raises(ConfigError, match=r"No ablation file 'dro-radios'.*dro-radius"):
        locate_ablation("dro-radios")


def live_or_die(job):
    """A run by name: ``exit`` and ``kill`` die, the others take a moment; each notes that it ran."""
    job.out.mkdir(parents=True)
    with (job.out / "started").open("x"):
        pass
    if job.arm.variant == "exit":
        os._exit(3)
    if job.arm.variant == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    return Result(job.arm.name, job.seed, str(job.out), {}, {})


def test_where_a_process_dies_the_others_go_on(tmp_path):
    variants = {"long": {}, "exit": {}, "b": {}, "kill": {}, "c": {}}
    ablation = make_ablation({"name": "t", "base": "dpo", "variants": variants, "seeds": [0]}, HERE)
    jobs = jobs_of(ablation, tmp_path)
    results = list(run_all(jobs, live_or_die, 2))
    assert sorted((each.arm, each.seed) for each in results) == sorted((job.arm.name, job.seed) for job in jobs)
    assert all((job.out / "started").exists() for job in jobs)
    failed = {each.arm for each in results if each.error is not None}
    assert failed == {"exit", "kill"}
    assert all("its process died" in each.error for each in results if each.arm in failed)


def result(arm, seed, win):
    report = None if win is None else {"win_rate_vs_initial": {"mean": win, "low": 0, "high": 1, "n": 9}}
    return Result(arm, seed, "", report, {}, "broke" if win is None else None)


def test_intervals_are_students_over_seeds():
    found = estimate([0.5, 0.6, 0.7])
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    assert found.mean == pytest.approx(0.6)
    assert (found.low, found.high) == (pytest.approx(0.6 - half), pytest.approx(0.6 + half))
    assert estimate([0.5]).low is None


def test_differences_are_paired_by_seed_and_leave_out_failed_runs():
    results = [result("a", 0, 0.5), result("a", 1, 0.9), result("a", 2, None)]
    results += [result("b", 0, 0.6), result("b", 1, 1.0), result("b", 2, 0.1)]
    assert over_seeds(results, "a", "win_rate_vs_initial") == {0: 0.5, 1: 0.9}
    gap = difference(results, "b", "a", "win_rate_vs_initial")
    assert gap.mean == pytest.approx(0.1)
    assert gap.high - gap.low == pytest.approx(0, abs=1e-12)
    assert difference(results, "b", "c", "win_rate_vs_initial") is None


def test_the_table_counts_failed_runs():
    ablation = make_ablation({"name": "t", "base": "dpo", "variants": {"a": {}, "b": {}}, "baseline": "a"}, HERE)
    table = ablation_table(ablation, [result("a", 0, 0.5), result("a", 1, None), result("b", 0, 0.75)])
    columns = {column.header: list(column.cells) for column in table.columns}
    assert columns["win rate"] == ["0.500", "0.750"]
    assert columns["vs baseline"] == ["-", "+0.250"]
    assert columns["failed"] == ["1", "-"]

"""`sera ablate`: every arm with every seed, in one or several processes; rerun, extended, with an arm that fails."""

import json
import re
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from ablated_runs import assert_close, stages_by_key
from filelock import FileLock

import sera_core
from sera_core import cli
from sera_core.ablating.run import How, grid_of, run_ablation, tasks_of
from sera_core.ablation import make_ablation
from sera_core.testing.artefacts import artefact_hashes

SMOOTHED = {"objective": {"smoother": {"name": "constant", "epsilon": 0.2}}}


@pytest.fixture(scope="module")
def ablation(tiny, tmp_path_factory):
    """Two variants and two seeds of the tiny run; a function that writes the file with changes."""
    base = tiny.config("dpo")
    file = tmp_path_factory.mktemp("ablation") / "small.yaml"
    (file.parent / "tiny.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")

    def write(**changes):
        content = {
            "base": "tiny.yaml",
            "variants": {"dpo": {}, "smoothed": SMOOTHED},
            "seeds": [0, 1],
            "baseline": "dpo",
        }
        file.write_text(yaml.safe_dump({**content, **changes}), encoding="utf-8")
        return file

    return write


@pytest.fixture(scope="module")
def finished(ablation, sera, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    told = sera("ablate", ablation(), "--out", out / "a", "--cache", out / "cache", "--processes", 2)
    return out, told.stdout


def test_the_table_and_the_results_hold_every_arm(finished):
    out, told = finished
    assert "smoothed" in told
    results = json.loads((out / "a" / "results.json").read_text(encoding="utf-8"))
    assert [(r["arm"], r["seed"]) for r in results] == [("dpo", 0), ("smoothed", 0), ("dpo", 1), ("smoothed", 1)]
    for each in results:
        summary = json.loads((out / "a" / each["arm"] / f"seed-{each['seed']}" / "summary.json").read_text("utf-8"))
        assert each["error"] is None
        assert each["report"]["margin_mean"] == summary["iterations"][-1]["margin_mean"]
        assert each["steps"]["loss"] > 0
        assert each["stages"]["iter_1/train"]["seconds"] > 0
        assert {"policy", "data"} < set(each["stages"])


def test_the_plan_comes_first_and_the_report_last(finished):
    out, told = finished
    assert re.search(r"4 runs, 0 of them finished; \d at a time", told)
    assert re.search(r"32 stages, 2\d of them distinct", told)
    assert "had each run made its own" in told
    assert told.index("4 runs") < told.index("vs baseline") < told.index("Report:")
    assert (out / "a" / "report.html").is_file()


def test_what_was_asked_for_is_written_down(finished):
    out, _ = finished
    asked = json.loads((out / "a" / "ablation.json").read_text(encoding="utf-8"))
    assert [arm["name"] for arm in asked["arms"]] == ["dpo", "smoothed"]
    assert asked["arms"][1]["settings"]["objective"]["smoother"] == SMOOTHED["objective"]["smoother"]
    assert (asked["seeds"], asked["baseline"], asked["families"]) == ([0, 1], {"smoothed": "dpo"}, {})


def test_a_shared_stage_is_computed_by_one_of_two_processes(ablation, sera, tmp_path):
    variants = {name: {"training": {"num_train_epochs": n}} for n, name in enumerate("abcd", start=1)}
    file = ablation(variants=variants, seeds=[0], baseline=None)
    sera("ablate", file, "--out", tmp_path / "a", "--cache", tmp_path / "cache", "--processes", 2)
    files = stages_by_key(tmp_path / "a")
    # A stage that a second process had computed as well would be another file than the one in the cache.
    assert all(len(nodes) == 1 for nodes in files.values())
    # data, select and the initial policy's samples; four of everything that differs.
    assert len(files) == 3 + 4 * 4


def test_a_finished_ablation_is_not_opened(finished, ablation, here, monkeypatch):
    out, _ = finished

    def no_run(*arguments, **more):
        raise AssertionError("a finished run was opened")

    monkeypatch.setattr("sera_core.runner.run", no_run)
    before = (out / "a" / "results.json").read_bytes()
    here("ablate", ablation(), "--out", out / "a", "--cache", out / "cache")
    assert (out / "a" / "results.json").read_bytes() == before


def test_a_damaged_run_is_opened_and_mended(finished, ablation, here, tiny):
    out, _ = finished
    run = out / "a" / "smoothed" / "seed-1"
    before = artefact_hashes(run)
    damaged = run / "iter_1" / "train" / "model" / "model.safetensors"
    # A new file: the one that is there is linked into the cache.
    content = damaged.read_bytes()
    damaged.unlink()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    told = json.loads(here("ablate", ablation(), "--out", out / "a", "--cache", out / "cache", "--plan", "--json"))
    assert [row["finished"] for row in told["arms"]] == [True, True, True, False]
    here("ablate", ablation(), "--out", out / "a", "--cache", out / "cache", "--json")
    assert artefact_hashes(run) == before


def test_verify_opens_finished_runs(finished, ablation, here, monkeypatch):
    out, _ = finished
    from sera_core import runner

    opened, run = [], runner.run
    monkeypatch.setattr("sera_core.runner.run", lambda *a, **m: (opened.append(m["out"]), run(*a, **m)))
    here("ablate", ablation(), "--out", out / "a", "--cache", out / "cache", "--verify", "--json")
    assert len(opened) == 4


def test_a_seed_and_a_variant_that_are_added_cost_only_themselves(finished, ablation, here):
    out, _ = finished
    kept = {path: path.stat().st_mtime_ns for path in (out / "a").rglob("steps.jsonl")}
    more = ablation(variants={"dpo": {}, "smoothed": SMOOTHED, "ipo": {"objective": {"loss": "ipo"}}})
    place = ("--out", out / "a", "--cache", out / "cache", "--seeds", 3, "--json")
    planned = json.loads(here("ablate", more, *place, "--plan"))
    assert (planned["runs"], planned["finished"], planned["seconds"] > 0) == (9, 4, True)
    assert len(json.loads(here("ablate", more, *place))) == 9
    now = {path: path.stat().st_mtime_ns for path in (out / "a").rglob("steps.jsonl")}
    assert len(now) == 9
    assert {path: now[path] for path in kept} == kept


def test_a_failing_arm_is_reported_and_the_rest_go_on(ablation, sera, here, tmp_path):
    # A policy that does not exist is only found when the run starts.
    file = ablation(variants={"broken": {"policy": {"model": str(tmp_path / "none")}}, "dpo": {}}, seeds=[0])
    place = ("--out", tmp_path / "a", "--cache", tmp_path / "cache")
    done = sera("ablate", file, *place, code=1)
    assert "broken, seed 0" in done.stdout
    results = json.loads((tmp_path / "a" / "results.json").read_text(encoding="utf-8"))
    assert [r["error"] is None for r in results] == [False, True]
    planned = json.loads(here("ablate", file, *place, "--plan", "--json"))
    assert [row["finished"] for row in planned["arms"]] == [False, True]


def test_a_bug_in_one_arm_is_told_with_its_trace(ablation, tmp_path, monkeypatch):
    from sera_core import runner

    run = runner.run

    def broken(settings, **more):
        if settings["name"] == "smoothed":
            raise RuntimeError("out of paper")
        return run(settings, **more)

    monkeypatch.setattr("sera_core.runner.run", broken)
    frame = sera_core.ablate(ablation(seeds=[0]), out=tmp_path / "a", cache=tmp_path / "cache")
    assert frame["error"].isna().tolist() == [True, False]
    assert "RuntimeError: out of paper" in frame["error"][1]
    assert "broken" in (tmp_path / "a" / "smoothed" / "seed-0.error.txt").read_text(encoding="utf-8")


def test_the_library_gives_a_row_per_run(finished, ablation):
    out, _ = finished
    axis = {"objective.loss.beta": [0.1, 0.2]}
    file = ablation(variants={"dpo": {}}, grid=axis, seeds=[0], baseline=None)
    frame = sera_core.ablate(str(file), out=out / "b", cache=out / "cache", seeds=2)
    assert frame["arm"].tolist() == ["dpo,beta=0.1", "dpo,beta=0.2"] * 2
    assert frame["beta"].tolist() == [0.1, 0.2] * 2
    assert frame["seed"].tolist() == [0, 0, 1, 1]
    report = json.loads((out / "b" / "dpo,beta=0.1" / "seed-0" / "iter_1" / "report.json").read_text("utf-8"))
    first = frame.iloc[0]
    assert first["accuracy"] == report["accuracy"]
    assert first["kl_to_initial"] == pytest.approx(report["kl_to_initial"])
    assert first["kl_to_initial_low"] == report["kl_interval"]["low"]
    assert frame.columns[-2:].tolist() == ["error", "out"]


@pytest.fixture
def refused(monkeypatch, capsys):
    """Call the command inside this process, which must refuse; what it said."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["sera", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        return " ".join(capsys.readouterr().err.split())

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "x"], "--seeds is a number of seeds such as 3"),
        (["--executor", "rai"], "Did you mean 'ray'? Known: local, ray."),
        (["trainin.learning_rate=1"], "Arm 'dpo': Unknown key 'trainin'"),
        (["objective.loss=ipoo"], "Arm 'dpo': Unknown objective 'ipoo'. Did you mean 'ipo'"),
        (["--memory", "-1"], "--memory"),
    ],
)
def test_mistakes_on_the_command_line_are_named(ablation, refused, tmp_path, arguments, message):
    assert message in refused("ablate", ablation(), *arguments, "--out", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_an_arm_that_cannot_be_honoured_is_refused_before_any_computes(ablation, refused, tmp_path):
    file = ablation(variants={"dpo": {}, "odd": {"objective": {"smoother": "smoth"}}})
    assert "Arm 'odd'" in refused("ablate", file, "--out", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_two_ablations_in_one_folder_are_refused(ablation, refused, tmp_path):
    (tmp_path / "a").mkdir()
    with FileLock(tmp_path / "a" / ".lock"):
        said = refused("ablate", ablation(), "--out", tmp_path / "a", "--cache", tmp_path / "cache")
    assert "Another ablation is running" in said


def test_an_ablation_under_a_launcher_is_refused(ablation, refused, monkeypatch, tmp_path):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert "without a launcher" in refused("ablate", ablation(), "--out", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_overrides_reach_every_arm_and_the_plan_computes_nothing(ablation, here, tmp_path):
    place = ("--out", tmp_path / "a", "--cache", tmp_path / "cache")
    text = here("ablate", ablation(), "objective.loss.beta=0.7", *place, "--plan")
    assert "16 stages" not in text
    planned = json.loads(here("ablate", ablation(), "objective.loss.beta=0.7", *place, "--plan", "--json"))
    assert [(row["arm"], row["seed"]) for row in planned["arms"]][:2] == [("dpo", 0), ("smoothed", 0)]
    assert (planned["stages"], planned["cached"], planned["seconds"]) == (32, 0, None)
    assert sum(row["new"] for row in planned["arms"]) == planned["distinct"]
    assert not (tmp_path / "a").exists()


def test_what_was_foreseen_is_what_happened(tiny, tmp_path):
    """Stages foreseen as one have one key, and those foreseen apart have different ones."""
    settings = {key: value for key, value in tiny.config("dpo").items() if key not in ("name", "cites", "objective")}
    settings["training"] = {**settings["training"], "num_train_epochs": 1}
    loop = {"loop": {"iterations": 2}}
    small = {"generated": {"samples": 2, "max_new_tokens": 8}}
    variants = {
        "iterative": {"extends": "iterative-dpo", **loop},
        "irm": {"extends": "irm-only", **loop},
        "sera": {"extends": "sera-dpo", **loop, **small},
        "more": {"extends": "sera-dpo", **loop, "generated": {**small["generated"], "selector": {"fraction": 0.5}}},
        "ipo": {"objective": {"loss": "ipo"}},
    }
    made = make_ablation(
        {"name": "t", "base": "dpo", "settings": settings, "variants": variants, "seeds": [0]}, tmp_path
    )
    how = How(cache=tmp_path / "cache")
    results = run_ablation(made, tmp_path / "a", how)
    assert [result.error for result in results] == [None] * 5
    keys, signatures = defaultdict(set), defaultdict(set)
    for task, result in zip(tasks_of(made, tmp_path / "a"), results, strict=True):
        assert {stage.where for stage in task.stages} == set(result.stages)
        for stage in task.stages:
            keys[stage.signature].add(result.stages[stage.where].key)
            signatures[result.stages[stage.where].key].add(stage.signature)
    assert all(len(found) == 1 for found in keys.values())
    assert all(len(found) == 1 for found in signatures.values())
    assert len(keys) < sum(len(result.stages) for result in results)
    grid, _ = grid_of(made, tmp_path / "elsewhere", how)
    assert grid.outlook().cached == len(grid)


def test_the_documented_three_lines_work(finished, ablation, tmp_path, monkeypatch, capsys):
    out, _ = finished
    page = (Path(__file__).parents[2] / "docs" / "ablations.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- ablate -->\n```python\n(.*?)```", page, re.DOTALL)
    shutil.copytree(ablation().parent, tmp_path / "here")
    (tmp_path / "here" / "small.yaml").rename(tmp_path / "here" / "smoothing.yaml")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("SERA_CACHE", str(out / "cache"))
    scope = {}
    exec(code, scope)  # noqa: S102  # our own page
    assert len(scope["frame"]) == 4
    assert "smoothed" in capsys.readouterr().out


def test_one_or_two_processes_give_the_same(finished, ablation, here, tmp_path):
    out, _ = finished
    here("ablate", ablation(), "--out", tmp_path / "a", "--cache", tmp_path / "cache", "--json")
    here("ablate", ablation(), "--out", out / "a", "--cache", out / "cache", "--json")
    assert_close(tmp_path / "a", out / "a")

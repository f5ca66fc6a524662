"""`sera ablate`: every arm with every seed, in one or several processes; rerun, extended, with an arm that fails."""

import json

import pytest
import yaml


@pytest.fixture(scope="module")
def ablation(tiny, tmp_path_factory):
    """Two variants and two seeds of the tiny run; a function that writes the file with changes."""
    base = tiny.config("dpo")
    file = tmp_path_factory.mktemp("ablation") / "small.yaml"
    (file.parent / "tiny.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")

    def write(**changes):
        content = {
            "base": "tiny.yaml",
            "variants": {"dpo": {}, "smoothed": {"objective": {"smoother": {"name": "constant", "epsilon": 0.2}}}},
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
    assert "vs baseline" in told
    assert "smoothed" in told
    results = json.loads((out / "a" / "results.json").read_text(encoding="utf-8"))
    assert [(r["arm"], r["seed"]) for r in results] == [("dpo", 0), ("smoothed", 0), ("dpo", 1), ("smoothed", 1)]
    for each in results:
        summary = json.loads((out / "a" / each["arm"] / f"seed-{each['seed']}" / "summary.json").read_text("utf-8"))
        assert each["error"] is None
        assert each["report"]["margin_mean"] == summary["iterations"][-1]["margin_mean"]
        assert each["steps"]["loss"] > 0


def test_a_seed_that_is_added_costs_only_itself(finished, ablation, here):
    out, _ = finished
    kept = {path: path.stat().st_mtime_ns for path in (out / "a").rglob("steps.jsonl")}
    told = here("ablate", ablation(seeds=[0, 1, 2]), "--out", out / "a", "--cache", out / "cache", "--json")
    assert len(json.loads(told)) == 6
    now = {path: path.stat().st_mtime_ns for path in (out / "a").rglob("steps.jsonl")}
    assert len(now) == 6
    assert {path: now[path] for path in kept} == kept


def test_a_failing_arm_is_reported_and_the_rest_go_on(ablation, sera, tiny, tmp_path):
    # A policy that does not exist is only found when the run starts.
    file = ablation(variants={"broken": {"policy": {"model": str(tmp_path / "none")}}, "dpo": {}}, seeds=[0])
    done = sera("ablate", file, "--out", tmp_path / "a", "--cache", tmp_path / "cache", code=1)
    assert "broken, seed 0" in done.stdout
    results = json.loads((tmp_path / "a" / "results.json").read_text(encoding="utf-8"))
    assert [r["error"] is None for r in results] == [False, True]


def test_an_arm_that_cannot_be_honoured_is_refused_before_any_computes(ablation, sera, tmp_path):
    file = ablation(variants={"dpo": {}, "odd": {"objective": {"smoother": "smoth"}}})
    done = sera("ablate", file, "--out", tmp_path / "a", code=2)
    assert "Arm 'odd'" in done.stderr
    assert not (tmp_path / "a").exists()


def test_the_plan_lists_the_runs_and_computes_nothing(ablation, here, tmp_path):
    listed = json.loads(here("ablate", ablation(), "--out", tmp_path / "a", "--plan"))
    assert [(entry["arm"], entry["seed"]) for entry in listed][:2] == [("dpo", 0), ("smoothed", 0)]
    assert not (tmp_path / "a").exists()


def test_an_ablation_under_a_launcher_is_refused(ablation, sera, tmp_path):
    done = sera("ablate", ablation(), "--out", tmp_path / "a", code=2, WORLD_SIZE="2", RANK="0", LOCAL_RANK="0")
    assert "without a launcher" in done.stderr
    assert not (tmp_path / "a").exists()

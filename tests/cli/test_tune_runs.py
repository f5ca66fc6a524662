"""`sera tune`: one run per value, a pick on the pairs set aside, and a config that runs with it."""

import json

import pytest
import yaml

from sera_core import cli


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory):
    """The tiny run as a file that sets many held-out pairs aside."""
    file = tmp_path_factory.mktemp("tuned") / "small.yaml"
    settings = tiny.config("dpo", "source.validation=4", "source.evaluation=2")
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def tuned(base, sera, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    told = sera(
        "tune", base, "objective.loss.beta=0.1,5", "training.learning_rate=5.0e-3", "--pairs", 2, "--seeds", "0,1",
        "--out", out / "t", "--cache", out / "cache",
    )  # fmt: skip
    return out, told.stdout


def reports(out, value):
    for seed in (0, 1):
        path = out / "t" / f"beta={value}" / f"seed-{seed}" / "iter_1" / "report.json"
        yield json.loads(path.read_text(encoding="utf-8"))


def test_the_value_with_the_best_mean_on_the_tuning_pairs_is_picked(tuned):
    out, told = tuned
    findings = json.loads((out / "t" / "tune.json").read_text(encoding="utf-8"))
    means = {}
    for trial in findings["trials"]:
        found = list(reports(out, trial["value"]))
        assert [report["tuning"]["n"] for report in found] == [2, 2]
        means[trial["value"]] = sum(report["tuning"]["accuracy"] for report in found) / 2
        assert trial["tuning"]["accuracy"]["mean"] == pytest.approx(means[trial["value"]])
        assert trial["held_out"]["accuracy"]["mean"] == pytest.approx(sum(r["accuracy"] for r in found) / 2)
    assert findings["best"] == max(means, key=means.get)
    assert f"Picked: objective.loss.beta = {findings['best']}" in told
    assert "→" in told


def test_the_tuning_pairs_and_the_others_make_up_all(tuned, tiny, here, base, tmp_path):
    out, _ = tuned
    whole = tmp_path / "whole"
    here(
        "run", base, "objective.loss.beta=5", "training.learning_rate=5.0e-3",
        "--out", whole, "--cache", out / "cache", "--json",
    )  # fmt: skip
    all_pairs = json.loads((whole / "iter_1" / "report.json").read_text(encoding="utf-8"))
    (apart, _) = reports(out, 5)
    held = json.loads((whole / "manifest.json").read_text(encoding="utf-8"))["data"]["validation"]
    assert all_pairs["tuning"] is None
    for name in ("margin_mean", "accuracy"):
        mixed = (2 * apart["tuning"][name] + (held - 2) * apart[name]) / held
        assert all_pairs[name] == pytest.approx(mixed)


def test_the_config_runs_and_finds_everything_in_the_cache(tuned, here, tmp_path):
    out, _ = tuned
    best = json.loads((out / "t" / "tune.json").read_text(encoding="utf-8"))
    here("run", best["config"], "--out", tmp_path / "r", "--cache", out / "cache", "--json")
    for stage in ("train", "evaluate"):
        tried = out / "t" / f"beta={best['best']}" / "seed-0" / "iter_1" / stage / "stage.json"
        assert (tmp_path / "r" / "iter_1" / stage / "stage.json").read_text("utf-8") == tried.read_text("utf-8")


def test_json_is_the_file(tuned, base, here):
    out, _ = tuned
    told = here(
        "tune", base, "objective.loss.beta=0.1,5", "training.learning_rate=5.0e-3", "--pairs", 2, "--seeds", "0,1",
        "--metric", "margin_mean", "--out", out / "t", "--cache", out / "cache", "--json",
    )  # fmt: skip
    findings = json.loads(told)
    assert findings == json.loads((out / "t" / "tune.json").read_text(encoding="utf-8"))
    assert findings["metric"] == "margin_mean"


@pytest.fixture
def refused(monkeypatch, capsys):
    """Call the command inside this process and expect an exit code; what it printed."""

    def call(*arguments, code):
        monkeypatch.setattr("sys.argv", ["sera", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == code
        return capsys.readouterr()

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["objective.loss.bta=1,2"], "has no option 'bta'. Did you mean 'beta'"),
        (["objectiv.loss.beta=1,2"], "Unknown key 'objectiv'"),
        (["objective.transforms.0.strength=1,2"], "not an index into a list"),
        (["objective.loss.beta=1"], "two or more values"),
        (["objective.loss.beta=1,-2"], "Arm 'beta=-2'"),
        (["objective.loss.beta=1,2", "--metric", "loss"], "--metric has no value 'loss'"),
        (["objective.loss.beta=1,2", "--seeds", "a"], "--seeds"),
    ],
    ids=["option", "key", "index", "one value", "bad value", "metric", "seeds"],
)
def test_what_cannot_be_tuned_is_refused_before_any_computes(base, refused, tmp_path, arguments, message):
    told = refused("tune", base, *arguments, "--out", tmp_path / "t", code=2)
    assert message in " ".join(told.err.split())
    assert not (tmp_path / "t").exists()


def test_too_many_tuning_pairs_end_with_the_reason(base, refused, tuned, tmp_path):
    told = refused(
        "tune", base, "objective.loss.beta=0.1,5", "--pairs", 4, "--out", tmp_path / "t",
        "--cache", tuned[0] / "cache", code=1,
    )  # fmt: skip
    said = " ".join(told.out.split())
    assert "evaluation.tuning_pairs = 4 must leave at least one of the 4 held-out pairs" in said
    assert "No value can be picked" in said
    assert not (tmp_path / "t" / "best.yaml").exists()

"""`sera report` of real runs, and the evidence beside the figures that it reads."""

import json
import shutil

import numpy as np
import pytest
import yaml

from sera_core.evidence import read_evidence


@pytest.fixture(scope="module")
def finished(tiny, sera, tmp_path_factory):
    """A DPO and a SeRA arm with two seeds each, both with the tiny model."""
    out = tmp_path_factory.mktemp("reported")
    for preset in ("dpo", "sera-dpo"):
        (out / f"{preset}.yaml").write_text(yaml.safe_dump(tiny.config(preset)), encoding="utf-8")
    content = {
        "base": "dpo.yaml",
        "variants": {"dpo": {}, "sera": {"extends": "sera-dpo.yaml"}},
        "seeds": [0, 1],
        "baseline": "dpo",
    }
    (out / "small.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    sera("ablate", out / "small.yaml", "--out", out / "a", "--cache", out / "cache")
    return out / "a"


def test_an_ablation_is_reported(finished, here):
    told = here("report", finished)
    assert f"Report: {finished / 'report.html'}" in told
    page = (finished / "report.html").read_text(encoding="utf-8")
    for anchor in ("results", "curves", "matrix", "length", "margins", "weights", "selection", "drops", "cost", "what"):
        assert f'<section id="{anchor}">' in page
    assert "it needs gold grades" in page, "no judge has graded these answers"
    text = (finished / "report.md").read_text(encoding="utf-8")
    assert "these 4 runs would have taken" in text
    assert "KL: difference to the baseline" in text
    assert "are not finished" not in text, "the settings of every run are those of its arm"
    assert "Not checked: longer answers that are no better (nothing judged the answers)" in text
    assert len(list((finished / "report_files").glob("*.svg"))) > 5


def test_a_run_is_reported_as_json(finished, here):
    run = finished / "sera" / "seed-1"
    told = json.loads(here("report", run, "--json"))
    assert told == {"html": str(run / "report.html"), "markdown": str(run / "report.md")}
    assert "One seed: nothing here says" in (run / "report.md").read_text(encoding="utf-8")


def test_the_baseline_can_be_another(finished, here):
    here("report", finished, "--baseline", "sera")
    text = (finished / "report.md").read_text(encoding="utf-8")
    assert "| dpo | sera |" in text


def test_runs_with_other_settings_than_the_ablation_has_now_are_left_out(finished, here, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "a")
    plan = json.loads((folder / "ablation.json").read_text(encoding="utf-8"))
    (arm,) = (arm for arm in plan["arms"] if arm["name"] == "sera")
    arm["settings"]["training"] = {**arm["settings"].get("training", {}), "learning_rate": 0.5}
    (folder / "ablation.json").write_text(json.dumps(plan), encoding="utf-8")
    here("report", folder)
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "- 2 of 4 runs are not finished (2 made with other settings); figures are of the others." in text
    assert "| sera | 1 | made with other settings |" in text
    here("report", folder / "sera" / "seed-1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["."], "holds neither an ablation"), (["{finished}", "--baseline", "ser"], "Did you mean 'sera'")],
)
def test_what_cannot_be_reported_is_said(finished, sera, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = sera("report", *(argument.format(finished=finished) for argument in arguments), code=2)
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("arm", "iteration"), [("dpo", 1), ("sera", 2)])
def test_figures_are_averages_of_the_evidence(finished, arm, iteration):
    folder = finished / arm / "seed-0" / f"iter_{iteration}"
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    samples, pairs, ancestral = (
        read_evidence(folder / "evaluate" / f"{name}.arrow").to_pandas() for name in ("samples", "pairs", "ancestral")
    )
    assert report["response_length"] == pytest.approx(samples["length"].mean())
    assert report["eos_rate"] == pytest.approx(samples["ended"].mean())
    assert report["reward_length_correlation"] == pytest.approx(np.corrcoef(samples["reward"], samples["length"])[0, 1])
    assert samples["gold"].isna().all()
    assert report["margin_mean"] == pytest.approx(pairs["margin"].mean())
    assert report["kl_to_initial"] == pytest.approx(ancestral.groupby("prompt")["log_ratio"].mean().mean())
    trained = read_evidence(folder / "train" / "pairs.arrow").to_pandas()
    assert len(trained) == report["pairs_offline"] + report["pairs_generated"]
    assert (trained["origin"] == "generated").sum() == report["pairs_generated"]
    assert trained["margin"].notna().all()

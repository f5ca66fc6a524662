"""From one command to a model on disk: what a run leaves, what the other commands say, and every preset once."""

import json
import math

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import sera_core
from sera_core.errors import SeraError
from sera_core.workspace import Workspace

SUMMARY = {"name", "seed", "iterations", "final_model"}
ITERATION = {
    "iteration",
    "pairs_offline",
    "pairs_generated",
    "dropped",
    "margin_mean",
    "accuracy",
    "chosen_logp_drift",
    "kl_to_initial",
    "win_rate_vs_initial",
    "gold_reward",
    "response_length",
    "eos_rate",
    "reward_length_correlation",
    "reward_gold_correlation",
    "seconds",
    "work",
}
PRESETS = (
    "best-sera-dpo",
    "bootstrap-only",
    "cdpo",
    "dpo-tuned",
    "dro-dpo",
    "irm-only",
    "iterative-dpo",
    "orpo",
    "rdpo",
    "sera-dpo-growing",
    "sera-dro-dpo",
    "sera-hinge",
    "sera-ipo",
    "sera-simpo",
    "spin",
    "sr-dpo",
    "sr-hinge",
    "sr-ipo",
    "sr-orpo",
    "sr-simpo",
)

# Presets whose tests need data or models of their own.
ELSEWHERE = (
    "curry-dpo",
    "oaif",
    "self-rewarding",
    "spa",
    "spa-dro",
    "spa-llm-judge",
    "spa-no-decoupling",
    "spa-no-reference",
    "spa-no-refinement",
    "spa-no-seed",
    "spa-official-code",
    "spa-previous-reference",
    "spa-reward-model",
    "spa-seed-only",
)


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def assert_finite(value, where=""):
    """Every number anywhere in a JSON value is finite."""
    if isinstance(value, dict):
        for key, item in value.items():
            assert_finite(item, f"{where}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            assert_finite(item, f"{where}.{i}")
    elif isinstance(value, float):
        assert math.isfinite(value), where


def assert_loads(folder):
    """The folder works with plain transformers: a chat prompt goes in, tokens come out."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "what is sky"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert inputs["input_ids"].shape[1] < output.shape[1] <= inputs["input_ids"].shape[1] + 3
    return model


@pytest.fixture(scope="module")
def finished(tiny, sera, tmp_path_factory):
    """A whole sera-dpo run through the command line: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    done = sera(
        "run", "sera-dpo", *tiny.overrides("sera-dpo"), "--out", folder / "run", "--cache", folder / "cache", "--json"
    )
    return folder / "run", done


def test_json_prints_the_summary_and_nothing_else(finished):
    out, done = finished
    assert json.loads(done.stdout) == read(out / "summary.json")
    assert "Iteration 2" in done.stderr


def test_the_summary_has_exactly_the_promised_fields(finished):
    out, _ = finished
    summary = read(out / "summary.json")
    assert set(summary) == SUMMARY
    assert (summary["name"], summary["seed"]) == ("sera-dpo", 0)
    assert [report["iteration"] for report in summary["iterations"]] == [1, 2]
    assert all(set(report) == ITERATION for report in summary["iterations"])
    assert summary["final_model"] == str((out / "model").resolve())
    assert_finite(summary)


def test_each_iteration_has_its_report(finished):
    out, _ = finished
    for report in read(out / "summary.json")["iterations"]:
        own = read(out / f"iter_{report['iteration']}" / "report.json")
        assert {key: own[key] for key in report} == report
    assert own["selection"]["offline"]["kept"] == report["pairs_offline"] == math.ceil(0.7 * 24)
    assert own["pairs_generated"] == own["selection"]["generated"]["kept"] > 0
    assert {"generate", "measure", "score", "label", "select", "train", "sample", "evaluate"} == set(own["seconds"])
    assert {"measure", "train", "evaluate"} <= set(own["work"]) <= set(own["seconds"])
    assert own["work"]["train"]["forward_tokens"]["packed_sdpa"] == own["work"]["train"]["useful_tokens"] > 0


def test_metrics_hold_one_line_a_step(finished):
    out, _ = finished
    lines = read_lines(out / "metrics.jsonl")
    assert [(line["iteration"], line["step"]) for line in lines] == [(t, s) for t in (1, 2) for s in range(1, 7)]
    assert_finite(lines)
    # At the first step of each iteration the policy is its own reference.
    assert [line["loss"] for line in lines if line["step"] == 1] == [pytest.approx(math.log(2), abs=1e-6)] * 2


def test_the_manifest_says_what_went_in(finished, tiny):
    out, _ = finished
    manifest = read(out / "manifest.json")
    assert manifest["versions"]["sera-core"] == sera_core.__version__
    assert manifest["components"]["scorer:irm"].startswith("irm@sera-plugin-irm==")
    assert (manifest["data"]["pairs"], manifest["data"]["source"]) == (24, "preferences")
    assert manifest["initial_policy"]["path"] == str(tiny.model)
    assert [step["offline"]["select_from"] for step in manifest["config"]] == [2, 2]
    assert manifest["settings"]["training"]["learning_rate"] == 1e-3
    assert manifest["attention"] == ["packed_sdpa"]


def test_the_final_model_is_an_ordinary_model(finished, tiny):
    out, _ = finished
    model = assert_loads(out / "model")
    card = (out / "model" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "# sera-dpo, iteration 2" in card
    assert "irm@sera-plugin-irm" in card
    before = AutoModelForCausalLM.from_pretrained(tiny.model)
    assert not model.model.layers[0].mlp.up_proj.weight.equal(before.model.layers[0].mlp.up_proj.weight)


def test_a_finished_run_given_again_computes_nothing(finished, tiny, sera):
    out, _ = finished
    stages = {path: path.stat().st_mtime_ns for path in out.rglob("stage.json")}
    done = sera("run", "sera-dpo", *tiny.overrides("sera-dpo"), "--out", out, "--cache", out.parent / "cache")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("stage.json")} == stages
    assert done.stdout.count("reused") >= len(stages)
    assert done.stdout.rstrip().endswith(f"Final model: {out / 'model'}")


def test_compare_puts_runs_side_by_side(finished, here):
    out, _ = finished
    shown = here("compare", out, out)
    assert shown.count("sera-dpo: report") == 2
    assert "KL" in shown
    assert json.loads(here("compare", out, out, "--json")) == [read(out / "summary.json")] * 2


def test_compare_says_when_a_run_is_not_finished(sera, tmp_path):
    done = sera("compare", tmp_path, code=2)
    assert "holds no finished run" in done.stderr
    assert "Traceback" not in done.stderr


def test_inspection_commands_speak_json(here):
    plugins = json.loads(here("plugins", "--json"))
    assert {"role", "name", "plugin", "distribution", "version", "summary"} == set(plugins[0])
    assert ("scorer", "irm", "sera-plugin-irm") in {(p["role"], p["name"], p["distribution"]) for p in plugins}
    described = json.loads(here("describe", "objective", "dpo", "--json"))
    assert described["provenance"].startswith("dpo@sera-core==")
    presets = {preset["name"]: preset for preset in json.loads(here("configs", "--json"))}
    assert set(presets) == {*PRESETS, *ELSEWHERE, "dpo", "sera-dpo"}
    assert all(preset["cites"] for preset in presets.values())


def test_doctor_and_version(here, sera, tmp_path):
    checks = json.loads(here("doctor", "--json", "--cache", tmp_path))
    assert {"python", "torch", "plugins", "cache"} <= {check["check"] for check in checks}
    assert sera("--version").stdout == f"{sera_core.__version__}\n"


def test_a_plan_computes_nothing(sera, tmp_path):
    done = sera("run", "sera-dpo", "seed=3", "--plan", "--out", tmp_path / "x", SERA_CACHE=str(tmp_path / "cache"))
    plan = json.loads(done.stdout)
    assert [step["seed"] for step in plan["iterations"]] == [3, 3, 3]
    assert plan["components"]["source:world"].startswith("world@sera-core==")
    assert list(tmp_path.iterdir()) == []


def test_as_a_library(tiny, tmp_path):
    result = sera_core.run(tiny.config("dpo"), out=tmp_path / "run", cache=tmp_path / "cache")
    assert result.out == tmp_path / "run"
    assert result.summary == read(tmp_path / "run" / "summary.json")
    assert result.model == tmp_path / "run" / "model"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs_with_source_and_policy_changed(preset, tiny, tmp_path, preset_cache):
    result = sera_core.run(tiny.config(preset), out=tmp_path, cache=preset_cache)
    assert result.summary["name"] == preset
    assert_finite(result.summary)
    assert_finite(read_lines(tmp_path / "metrics.jsonl"))
    last = result.summary["iterations"][-1]
    assert None not in {last[name] for name in ("kl_to_initial", "accuracy", "margin_mean", "eos_rate")}
    counts = (last["pairs_offline"] > 0, last["pairs_generated"] > 0)
    generates = preset.startswith(("sera", "best", "bootstrap"))
    assert counts == ((False, True) if preset == "spin" else (True, generates))
    assert_loads(result.model)


@pytest.fixture(scope="module")
def preset_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("presets")


def test_lora_saves_a_merged_model(tiny, tmp_path):
    config = tiny.config("sera-dpo", "policy.lora={r: 4}")
    result = sera_core.run(config, out=tmp_path / "run", cache=tmp_path / "cache")
    assert_finite(result.summary)
    model = assert_loads(result.model)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    assert not list(result.model.glob("adapter*"))
    before = AutoModelForCausalLM.from_pretrained(tiny.model)
    assert not model.model.layers[0].mlp.up_proj.weight.equal(before.model.layers[0].mlp.up_proj.weight)


def test_the_best_iterate_is_the_result_when_stopping_at_convergence(tiny, tmp_path, here):
    # At so small a rate nothing improves after the first iterations.
    config = tiny.config(
        "iterative-dpo", "loop.iterations=4", "loop.stop={metric: accuracy, patience: 2}", "training.learning_rate=1e-9"
    )
    result = sera_core.run(config, out=tmp_path / "run", cache=tmp_path / "cache")
    accuracies = [report["accuracy"] for report in result.summary["iterations"]]
    best = accuracies.index(max(accuracies)) + 1
    assert len(accuracies) == min(best + 2, 4)
    weights = (result.model / "model.safetensors").read_bytes()
    assert weights == (tmp_path / f"run/iter_{best}/train/model/model.safetensors").read_bytes()
    assert f", iteration {best}\n" in (result.model / "README.md").read_text(encoding="utf-8")
    assert f"{best}/{len(accuracies)}" in here("compare", result.out)


def test_two_processes_do_not_share_a_folder(tiny, tmp_path):
    with (
        Workspace(tmp_path / "run", tmp_path / "cache"),
        pytest.raises(SeraError, match="Another process is running"),
    ):
        sera_core.run(tiny.config("dpo"), out=tmp_path / "run", cache=tmp_path / "cache")


def test_brackets_survive_in_tables(sera):
    assert "Mapping[str, str | None]" in sera("describe", "source", "preferences").stdout

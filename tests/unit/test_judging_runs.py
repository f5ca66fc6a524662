"""Whole runs with judges that ask a model, and the curriculum, on models and data of the size of a thumb."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from judge_models import ASK, GRADE, TINY, opened, save_model, save_reward, settings, write_scored
from safetensors.numpy import load_file

import sera_core
from sera_core import asker, configfile
from sera_core.catalog import load_catalog
from sera_core.curate.score import both_sides
from sera_core.curation import History, curate
from sera_core.data.tables import read_candidates, read_pairs
from sera_core.errors import ConfigError
from sera_core.models.generate import hf
from sera_core.plan import make_plan
from sera_core.resolved import resolved_settings

RANKS = Path(__file__).parents[1] / "cli" / "ranked_runs.py"
GENERATED = ("generated.max_new_tokens=6", "loop.iterations=2")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged")
    save_model(folder / "policy")
    save_reward(folder / "reward")
    write_scored(folder / "scored.jsonl")
    return folder


@pytest.fixture(scope="module")
def catalog():
    return load_catalog()


def config(here, preset, *more):
    return settings(preset, here / "scored.jsonl", here / "policy", *more)


def report(result, iteration):
    return json.loads((result.out / f"iter_{iteration}" / "report.json").read_text(encoding="utf-8"))


def run(here, folder, preset, *more, name="run"):
    return sera_core.run(config(here, preset, *more), out=folder / name, cache=folder / "cache")


def test_online_feedback_from_a_language_model(here, tmp_path):
    judge = f"generated.judge={{name: llm_judge, template: '{ASK}'}}"
    result = run(here, tmp_path, "oaif", *GENERATED, judge)
    for iteration in (1, 2):
        found = report(result, iteration)
        figures = found["selection"]["generated"]["judge"]
        assert figures["comparisons"] >= found["pairs_generated"] > 0
        assert 0 <= figures["order_flip_rate"] <= 1
        assert -0.5 <= figures["first_position_bias"] <= 0.5
        assert (figures["abstained"], figures["samples_left_out"]) == (0, 0)
        assert found["pairs_offline"] == 0
        assert found["judge"] is None
        assert "judge" in found["seconds"]
        scores = load_file(result.out / f"iter_{iteration}/judge/scores.safetensors")["scores"]
        assert set(scores.tolist()) <= {0.0, 0.5, 1.0}
    # The iterations ask about prompts of their own.
    asked = [read_candidates(result.out / f"iter_{t}/generate/candidates.arrow").prompts for t in (1, 2)]
    assert not {p.id for p in asked[0]} & {p.id for p in asked[1]}
    manifest = json.loads((result.out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["components"]["judge:llm_judge"].startswith("llm_judge@sera-core==")
    assert manifest["config"][0]["generated"]["judge"]["model"] == "initial"
    assert manifest["config"][0]["evaluation"]["judge"] is None


def test_self_rewarding_asks_the_newest_iterate(here, tmp_path):
    more = (f"generated.judge.template='{GRADE}'", "generated.judge.max_new_tokens=2", "generated.prompts=offline")
    result = run(here, tmp_path, "self-rewarding", *GENERATED, *more)
    keys = []
    for iteration in (1, 2):
        found = report(result, iteration)
        figures = found["selection"]["generated"]["judge"]
        folder = result.out / f"iter_{iteration}"
        samples = read_candidates(folder / "generate/candidates.arrow")
        scores = load_file(folder / "judge/scores.safetensors")["scores"]
        assert figures["replies"] == 3 * len(scores)
        assert 0 < figures["parse_failures"] < figures["replies"]
        assert figures["samples_left_out"] == figures["abstained"] == np.isnan(scores).sum() > 0
        groups = np.split(np.isfinite(scores), np.cumsum([len(g) for g in samples.responses])[:-1])
        lost = sum(not g.all() and g.sum() < 2 for g in groups)
        assert found["dropped"].get("generated.judge_abstained", 0) == lost
        # Every prompt is a pair, or a drop with a reason.
        assert found["pairs_generated"] + sum(found["dropped"].values()) == len(samples.prompts)
        graded = {(r.prompt.id, r.text): s for r, s in zip(samples.flat(), scores, strict=True)}
        for pair in read_pairs(folder / "label/pairs.arrow").pairs:
            both = [graded[pair.prompt.id, side.text] for side in (pair.chosen, pair.rejected)]
            assert both[0] > both[1]
        keys.append(json.loads((folder / "judge/stage.json").read_text(encoding="utf-8"))["key"])
    assert keys[0] != keys[1]


def test_a_reward_model_labels_and_evaluates(here, tmp_path, monkeypatch):
    judge = f"{{name: reward_model, model: {here / 'reward'}}}"
    wanted = (f"generated.judge={judge}", f"evaluation.judge={judge}", "loop.stop={metric: win_rate_vs_initial}")
    result = run(here, tmp_path, "oaif", *GENERATED, *wanted)
    found = report(result, 1)
    assert found["selection"]["generated"]["judge"] == {"samples_left_out": 0.0}
    assert 0 <= found["win_rate_vs_initial"]["mean"] <= 1
    assert (found["gold_reward"], found["judge"]) == (None, None)
    summary = json.loads((result.out / "summary.json").read_text(encoding="utf-8"))
    assert "judge" not in summary["iterations"][0]

    def loaded(*_, **__):
        raise AssertionError("a model was loaded for what is stored")

    for module, name in ((asker, "load_reward_model"), (asker, "load_policy"), (hf, "load_policy")):
        monkeypatch.setattr(module, name, loaded)
    again = run(here, tmp_path, "oaif", *GENERATED, *wanted, name="again")
    assert report(again, 2)["win_rate_vs_initial"] == report(result, 2)["win_rate_vs_initial"]


def test_an_evaluation_judge_judges_samples_and_reports_its_figures(here, tmp_path):
    judge = f"evaluation.judge={{name: llm_judge, template: '{ASK}'}}"
    found = report(run(here, tmp_path, "dpo", judge), 1)
    assert found["judge"]["comparisons"] <= found["win_rate_vs_initial"]["n"]
    assert {"order_flip_rate", "first_position_bias", "abstained"} <= set(found["judge"])
    graded = f"{{name: llm_grades, model: initial, template: '{GRADE}', max_new_tokens: 10, samples: 2}}"
    result = run(here, tmp_path, "dpo", f"evaluation.judge={graded}", name="graded")
    found, asked = report(result, 1), read_candidates(result.out / "iter_0/sample/candidates.arrow").prompts
    assert found["judge"]["replies"] == 2 * 2 * len(asked)
    assert found["gold_reward"] is None
    assert found["win_rate_vs_initial"] is None or found["win_rate_vs_initial"]["abstained"] >= 0


def test_two_processes_judge_as_one(here, tmp_path):
    judge = f"{{name: llm_judge, model: {here / 'policy'}, template: '{ASK}'}}"
    more = (f"generated.judge={judge}", f"evaluation.judge={{name: reward_model, model: {here / 'reward'}}}")
    one = run(here, tmp_path, "oaif", *GENERATED, *more, name="one")
    overrides = [f"source={here / 'scored.jsonl'}", f"policy.model={here / 'policy'}", *TINY, *GENERATED, *more]
    folders = ["--out", str(tmp_path / "two"), "--cache", str(tmp_path / "cache-of-two")]
    done = subprocess.run(
        [sys.executable, str(RANKS)],
        input=json.dumps({"two": {"arguments": ["run", "oaif", *overrides, *folders]}}),
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ended = json.loads(done.stdout)["two"]
    assert ended["codes"] == [0, 0], ended["err"]
    both = [load_file(out / "iter_1/judge/scores.safetensors")["scores"] for out in (one.out, tmp_path / "two")]
    assert np.array_equal(*both)
    assert json.loads((tmp_path / "two/iter_2/report.json").read_text(encoding="utf-8"))["win_rate_vs_initial"]


def gaps(result, iteration):
    pairs = read_pairs(result.out / f"iter_{iteration}/select/pairs.arrow").pairs
    return {pair.prompt.id: pair.chosen.score - pair.rejected.score for pair in pairs}


def test_the_curriculum_goes_from_easy_to_hard(here, tmp_path):
    result = run(here, tmp_path, "curry-dpo", "source.pairing=best_vs_rest")
    stages = [gaps(result, iteration) for iteration in (1, 2, 3)]
    assert [set(stage.values()) for stage in stages] == [{6.0}, {4.0}, {2.0}]
    assert len({frozenset(stage) for stage in stages}) == 1
    found = report(result, 3)
    assert found["selection"]["offline"]["kept"] == len(stages[2]) == found["pairs_offline"]
    assert found["selection"]["offline"]["pairs"] == 3 * len(stages[2])


def test_the_curriculum_by_the_initial_policy_s_log_probs(here, tmp_path):
    more = ("source.pairing=best_vs_rest", "offline.scorer=reference_gap")
    with opened(tmp_path, config(here, "curry-dpo", *more)) as context:
        pairs = context.data.pairs.pairs
        margins = np.subtract(*np.split(context.logps(context.initial, both_sides(pairs)), 2))
        by_prompt = {}
        for pair, margin in zip(pairs, margins, strict=True):
            by_prompt.setdefault(pair.prompt.id, []).append((-margin, pair.id))
        for rank, step in enumerate(context.plan.iterations):
            kept = curate(context, step, History(context.initial)).pairs.pairs
            assert len(kept) == len(by_prompt)
            assert [p.id for p in kept] == [sorted(by_prompt[p.prompt.id])[rank][1] for p in kept]


def test_a_curriculum_without_several_pairs_is_refused_before_anything_is_computed(here, tmp_path):
    message = r"offline.selector 'curriculum' keeps pairs of prompts with at least 2 pairs in iteration 2.*best_vs_rest"
    with pytest.raises(ConfigError, match=message), opened(tmp_path, config(here, "curry-dpo")):
        raise AssertionError("the run was opened")
    too_many = config(here, "curry-dpo", "source.pairing=best_vs_rest", "loop.iterations=4", "offline.selector.stage=4")
    with pytest.raises(ConfigError, match="at least 4 pairs in iteration 1.* more than 3"), opened(tmp_path, too_many):
        raise AssertionError("the run was opened")


def world(name, *more):
    return configfile.override(configfile.read(configfile.locate(name)), more)


def test_auto_is_gold_where_the_source_has_gold_else_a_language_model(here, catalog):
    plan = make_plan(world("oaif"), catalog)
    assert (plan.iterations[0].generated.judge_name, plan.judge_name) == ("gold", "gold")
    assert resolved_settings(plan, plan.iterations[0])["generated"]["judge"] == {"name": "gold"}
    plan = make_plan(config(here, "oaif"), catalog)
    assert (plan.iterations[0].generated.judge_name, plan.judge_name) == ("llm_judge", None)
    found = resolved_settings(plan, plan.iterations[0])
    assert found["generated"]["judge"]["labels"] == ["A", "B"]
    assert found["evaluation"]["judge"] is None


def test_evaluation_and_generation_may_have_judges_of_their_own(catalog):
    more = ("generated.judge=llm_judge", "evaluation.judge={name: llm_judge, tie_margin: 0.1}")
    plan = make_plan(world("oaif", *more), catalog)
    assert (plan.iterations[0].generated.judge.tie_margin, plan.judge.tie_margin) == (0.0, 0.1)


REFUSED = {
    "scorer and judge": (
        ("generated.scorer=length",),
        "generated.scorer = length and generated.judge = auto would both score the samples. Remove one",
    ),
    "neither": (
        ("generated.judge=null",),
        "generated.scorer is missing: labeler 'best_worst' reads scores. Set generated.scorer, or generated.judge",
    ),
    "judge unread": (
        ("generated.labeler=target_first", "generated.prompts=sft"),
        "generated.judge is set, but selector 'all' reads no scores: it would be ignored",
    ),
    "moving yardstick": (
        ("evaluation.judge=llm_grades",),
        "evaluation.judge 'llm_grades' asks the policy itself, so the yardstick would move",
    ),
    "curriculum of one": (
        ("generated.selector=curriculum",),
        "generated.selector 'curriculum' compares the pairs of one prompt, and a labeler makes one",
    ),
    "no model": (("evaluation.judge=reward_model",), "judge 'reward_model': model is missing"),
    "unknown judge": (("generated.judge=llm_juge",), "Unknown judge 'llm_juge'. Did you mean 'llm_judge'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_honoured_is_refused_in_the_plan(case, catalog):
    more, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        make_plan(world("oaif", *more), catalog)


def test_gold_without_gold_is_refused_in_the_plan(here, catalog):
    with pytest.raises(ConfigError, match="generated.judge 'gold' needs gold answers, which source 'preferences'"):
        make_plan(config(here, "oaif", "generated.judge=gold"), catalog)


def test_a_missing_mean_is_no_number(here, tmp_path):
    """Where the judge has no grade for any sample, the run says what was dropped instead of training on nothing."""
    never = (
        "generated.judge={name: llm_grades, model: initial, template: 'one {prompt} two {response}', low: 50, high: 60}"
    )
    with pytest.raises(sera_core.errors.DataError, match=r"generated.judge_abstained \d+"):
        run(here, tmp_path, "oaif", *GENERATED, never, "generated.judge.max_new_tokens=4")
    assert math.isnan(load_file(tmp_path / "run/iter_1/judge/scores.safetensors")["scores"][0])

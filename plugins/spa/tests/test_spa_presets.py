"""What the presets come to, iteration by iteration."""

import pytest
from spa_runs import TINY, read, run, settings, write_pairs

from sera_core.catalog import load_catalog
from sera_core.data.tables import read_candidates
from sera_core.errors import ConfigError
from sera_core.plan import make_plan
from sera_core.resolved import resolved_settings
from sera_plugin_spa import DirectJudgment, OfficialCodeRefinement, SelfRefinement

ROUNDS = ("spa", "spa-no-refinement", "spa-no-decoupling", "spa-previous-reference", "spa-no-reference")


def plan_of(preset, *overrides):
    return make_plan(settings(preset, *overrides), load_catalog())


@pytest.mark.parametrize("preset", ROUNDS)
def test_a_seed_then_rounds(preset):
    plan = plan_of(preset)
    assert [step.offline is not None for step in plan.iterations] == [True, False, False, False]
    assert [step.generated is not None for step in plan.iterations] == [False, True, True, True]
    assert [step.config.training["num_train_epochs"] for step in plan.iterations] == [3, 1, 1, 1]
    assert (plan.config.loop.reference, plan.config.loop.start) == ("previous", "previous")
    assert plan.config.offline.selector.options == {"fraction": 0.1}
    round_ = plan.iterations[1].generated
    assert (round_.sampling.samples, round_.sampling.temperature, round_.sampling.top_p) == (2, 0.7, 1.0)
    assert round_.settings.disjoint
    assert plan.evaluation_sampling.top_p == 0.95


def test_the_schedule_of_the_paper():
    smoothers = [step.objective.smoother for step in plan_of("spa").iterations]
    assert [s.extrapolation for s in smoothers] == [0.0, 0.5, 0.25, 0.125]
    assert [s.warmup for s in smoothers] == [1.0, 0.2, 0.2, 0.2]
    assert all((s.alpha, s.share, s.threshold_scope, s.window) == (0.1, 0.1, "window", 50) for s in smoothers)


def test_every_iteration_has_a_smoother_of_its_own():
    plan = plan_of("spa", "objective.smoother={name: spa}")
    windows = [step.objective.smoother.recent for step in plan.iterations]
    assert len({id(window) for window in windows}) == 4
    again = plan_of("spa", "objective.smoother={name: spa}").iterations[0].objective.smoother
    assert again == plan.iterations[0].objective.smoother
    assert again.recent is not windows[0]


def test_what_the_variants_change():
    variants = {name: plan_of(name).iterations[-1] for name in (*ROUNDS, "spa-official-code")}
    scorers = {name: step.generated.scorer for name, step in variants.items()}
    assert scorers["spa"] == scorers["spa-official-code"] == DirectJudgment(reference="initial")
    assert scorers["spa-previous-reference"] == DirectJudgment(reference="previous")
    assert scorers["spa-no-reference"] == DirectJudgment(reference="none")
    assert variants["spa-no-decoupling"].objective.smoother == SelfRefinement(extrapolation=0.0)
    assert variants["spa-official-code"].objective.smoother == OfficialCodeRefinement()
    assert variants["spa-official-code"].iteration == 3
    assert not hasattr(variants["spa-no-refinement"].objective.smoother, "alpha")


def test_without_a_seed_every_iteration_generates():
    plan = plan_of("spa-no-seed", "policy.model=tuned")
    assert all(step.offline is None and step.generated is not None for step in plan.iterations)
    assert [step.objective.smoother.extrapolation for step in plan.iterations] == [0.5, 0.25, 0.125]
    assert {step.objective.smoother.warmup for step in plan.iterations} == {0.2}


def test_options_of_the_smoother_may_be_swept_alone():
    plan = plan_of("spa", "objective.smoother.share=0.3", "objective.smoother.alpha=0.5")
    assert {(s.objective.smoother.share, s.objective.smoother.alpha) for s in plan.iterations} == {(0.3, 0.5)}
    plan = plan_of("spa", "offline.by_iteration.0.selector.fraction=0.2")
    assert plan.config.offline.selector.options["fraction"] == 0.2


def test_resolved_settings_state_every_option_and_no_state():
    plan = plan_of("spa")
    stated = resolved_settings(plan, plan.iterations[1])
    smoother = stated["objective"]["smoother"]
    assert set(smoother) == {
        "name",
        "alpha",
        "share",
        "extrapolation",
        "warmup",
        "threshold_scope",
        "window",
        "refresh",
    }
    assert stated["generated"]["scorer"] == {"name": "direct_judgment", "reference": "initial", "length_penalty": 0.0}


@pytest.mark.parametrize("loss", ["simpo", "orpo"])
def test_extrapolation_needs_a_reference(loss):
    with pytest.raises(ConfigError, match="objective.smoother.*reference"):
        plan_of("spa", f"objective.loss={loss}")
    assert plan_of("spa", f"objective.loss={loss}", "objective.smoother.extrapolation=0.0")


def test_on_preference_data_prompts_are_those_of_the_pairs_or_a_file(tmp_path, tiny_model_dir):
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    fresh = tmp_path / "fresh.jsonl"
    fresh.write_text("".join(f'{{"prompt": "what is {w} or it"}}\n' for w in ("sky", "sea", "sun")), encoding="utf-8")
    (tmp_path / "runs").mkdir()
    tiny = [f"policy.model={tiny_model_dir}", *TINY, "objective.smoother=none"]
    out = run(tmp_path / "runs", "spa", f"source={pairs}", *tiny)
    ids = [[p.id for p in read_candidates(out / f"iter_{t}/generate/candidates.arrow").prompts] for t in (2, 3, 4)]
    assert len({name for each in ids for name in each}) == sum(map(len, ids)) >= 12
    named = {"name": "preferences", "path": str(pairs), "fresh": str(fresh)}
    out = run(tmp_path / "runs", "spa", f"source={named}", *tiny)
    asked = [read_candidates(out / f"iter_{t}/generate/candidates.arrow").prompts for t in (2, 3, 4)]
    assert sorted(p.source.messages[-1].content for group in asked for p in group) == [
        f"what is {w} or it" for w in ("sea", "sky", "sun")
    ]
    assert read(out, "manifest.json")["base_policy"] is None


@pytest.mark.parametrize(
    ("preset", "judge", "more"),
    [("spa-llm-judge", "llm_judge", ()), ("spa-reward-model", "reward_model", ("generated.judge.model=judge",))],
)
def test_judges_label_the_same_rounds(preset, judge, more):
    plan, own = plan_of(preset, *more), plan_of("spa-no-refinement")
    for step, other in zip(plan.iterations, own.iterations, strict=True):
        assert step.offline == other.offline
        assert step.objective == other.objective
        assert step.config.training == other.config.training
    round_ = plan.iterations[1].generated
    assert round_.scorer is None
    assert plan.provenance[f"judge:{judge}"].startswith(judge)
    assert round_.sampling == own.iterations[1].generated.sampling

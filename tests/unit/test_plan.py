"""Planning: names resolved, schedules applied, and everything that could not be honoured refused."""

import dataclasses

import pytest

from sera_core import configfile
from sera_core.catalog import load_catalog
from sera_core.configfile import merge, override
from sera_core.errors import ConfigError
from sera_core.plan import make_plan
from sera_core.plancheck import check_plan
from sera_core.protocols import Needs


@pytest.fixture(scope="module")
def catalog():
    return load_catalog()


def preset(name, *overrides):
    return override(configfile.read(configfile.locate(name)), overrides)


def test_sera_selects_from_the_second_iteration(catalog):
    plan = make_plan(preset("sera-dpo"), catalog)
    assert [(s.offline.acts, s.generated is not None) for s in plan.iterations] == [
        (False, False),
        (True, True),
        (True, True),
    ]
    assert plan.provenance["scorer:irm"].startswith("irm@sera-plugin-irm==")


def test_the_source_recommends_and_the_user_decides(catalog):
    plan = make_plan(preset("dpo"), catalog)
    assert plan.iterations[0].objective.loss.beta == 0.5
    assert plan.config.training["learning_rate"] == 1e-4
    tuned = make_plan(preset("dpo", "objective.loss.beta=0.2", "training.learning_rate=3.0e-4"), catalog)
    assert tuned.iterations[0].objective.loss.beta == 0.2
    assert tuned.config.training["learning_rate"] == 3e-4
    assert tuned.config.training["weight_decay"] == 0.0


def test_recommendations_for_an_absent_section_do_not_create_it(catalog):
    assert make_plan(preset("dpo"), catalog).config.generated is None
    assert make_plan(preset("sera-dpo"), catalog).config.generated.max_new_tokens == 16


def test_by_iteration_in_options_and_in_training(catalog):
    raw = preset("iterative-dpo", "training.learning_rate={by_iteration: [1.0e-4, 5.0e-5]}")
    raw = override(raw, ["objective.loss.beta={by_iteration: [0.1, 0.2, 0.3]}"])
    plan = make_plan(raw, catalog)
    assert [s.config.training["learning_rate"] for s in plan.iterations] == [1e-4, 5e-5, 5e-5]
    assert [s.objective.loss.beta for s in plan.iterations] == [0.1, 0.2, 0.3]


def test_a_path_as_source_means_preference_data(catalog, tmp_path):
    plan = make_plan(preset("dpo", f"source={tmp_path}", "source.limit=8", "policy.model=somewhere"), catalog)
    assert (plan.config.source.name, plan.config.source.options["limit"]) == ("preferences", 8)
    assert plan.source.path == str(tmp_path)
    assert plan.judge is None


def test_planning_leaves_the_settings_alone(catalog):
    raw = preset("sera-dpo")
    before = merge({}, raw)
    make_plan(raw, catalog)
    assert raw == before


REFUSALS = {
    "unknown section": (
        "dpo",
        ["trainig.learning_rate=1"],
        r"Unknown key 'trainig' in the configuration. Did you mean 'training'",
    ),
    "unknown key": ("dpo", ["loop.iteratons=2"], r"Unknown key 'iteratons' in loop. Did you mean 'iterations'"),
    "unknown nested key": ("dpo", ["policy.lora={rank: 8}"], r"Unknown key 'rank' in policy.lora"),
    "wrong type": ("dpo", ["loop.iterations=many"], r"loop.iterations = 'many'"),
    "zero iterations": ("dpo", ["loop.iterations=0"], r"loop.iterations = 0"),
    "negative seed": ("dpo", ["seed=-1"], r"seed = -1"),
    "bad name": ("dpo", ["name=a/b"], r"name = 'a/b'"),
    "unknown objective": ("dpo", ["objective.loss=dop"], r"Unknown objective 'dop'. Did you mean 'dpo'"),
    "unknown option": (
        "dpo",
        ["objective.loss={name: dpo, bta: 1}"],
        r"objective 'dpo' has no option 'bta'. Did you mean 'beta'",
    ),
    "option of another component": (
        "dpo",
        ["objective.loss={name: orpo, beta: 1}"],
        r"objective 'orpo' has no option 'beta'",
    ),
    "option out of range": ("dpo", ["objective.loss.beta=-1"], r"beta"),
    "unknown source": ("dpo", ["source=wrld"], r"Unknown source 'wrld'. Did you mean 'world'"),
    "source option": ("dpo", ["source.nois=0.1"], r"source 'world' has no option 'nois'"),
    "component without name": ("dpo", ["objective.loss=null", "objective.loss.beta=1"], r"name"),
    "no policy": ("dpo", ["source=./x/y"], r"policy.model is 'auto', but source 'preferences' brings no policy"),
    "revision of auto": ("dpo", ["policy.revision=main"], r"policy.revision is set, but policy.model is 'auto'"),
    "reference unused": (
        "orpo",
        ["loop.reference=initial"],
        r"loop.reference is set, but objective 'orpo' is reference-free",
    ),
    "start unused": ("dpo", ["loop.start=previous"], r"loop.start = previous has no meaning"),
    "patience too long": ("dpo", ["loop.stop={patience: 3}"], r"loop.stop.patience = 3 can never act"),
    "stop without judge": (
        "iterative-dpo",
        ["loop.stop={metric: gold_reward}", "evaluation.judge=null"],
        r"loop.stop.metric = gold_reward needs a judge",
    ),
    "no pairs": ("dpo", ["offline=null"], r"Iteration 1 would have no pairs"),
    "scorer unused": ("dpo", ["offline.scorer=length"], r"offline.scorer is set, but selector 'all' reads no scores"),
    "scorer missing": (
        "dpo",
        ["offline.selector={name: top, count: 3}"],
        r"offline.scorer is missing: selector 'top' reads scores",
    ),
    "history too early": (
        "sera-dpo",
        ["offline.select_from=1"],
        r"offline.scorer reads trained iterates.*select_from=2",
    ),
    "generation too early": ("sera-dpo", ["generated.from_iteration=1"], r"generated.scorer reads trained iterates"),
    "selection too late": (
        "sera-dpo",
        ["offline.select_from=4"],
        r"offline.select_from = 4 lies beyond loop.iterations = 3",
    ),
    "generation too late": ("sera-dpo", ["generated.from_iteration=9"], r"generated.from_iteration = 9 lies beyond"),
    "unknown prompts": ("sera-dpo", ["generated.prompts=frsh"], r"has no such prompts. Did you mean 'fresh'"),
    "targets missing": ("spin", ["generated.prompts=offline"], r"needs prompts that carry a reference answer"),
    "annotated own samples": (
        "sera-dpo",
        ["generated.scorer=annotated"],
        r"reads annotated scores, which the policy's own samples",
    ),
    "one sample": (
        "sera-dpo",
        ["generated.samples=1"],
        r"generated.samples = 1: labeler 'best_worst' needs at least 2",
    ),
    "scorer of a referenceless run": (
        "sera-dpo",
        ["objective.loss=simpo"],
        r"compares each iterate with the reference it was trained against, but objective 'simpo' is reference-free",
    ),
    "gold of strangers": (
        "dpo",
        ["source=./x/y", "policy.model=m", "evaluation.judge=gold"],
        r"evaluation.judge needs gold answers",
    ),
    "misplaced schedule": ("dpo", ["seed={by_iteration: [1]}"], r"by_iteration is not possible in 'seed'"),
    "training typo": ("dpo", ["training.learning_rat=1"], r"learning_rate"),
    "training owned": ("dpo", ["training.output_dir=x"], r"output_dir"),
    "temperature zero": ("sera-dpo", ["generated.temperature=0"], r"generated.temperature = 0"),
    "both sizes": ("sera-dpo", ["offline.selector.count=3"], r"fraction.*count|count.*fraction"),
}


@pytest.mark.parametrize(("name", "overrides", "words"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(catalog, name, overrides, words):
    with pytest.raises(ConfigError, match=words):
        make_plan(preset(name, *overrides), catalog)


class AsksForDataset:
    needs = Needs(dataset_every=0.5)


@pytest.mark.parametrize(
    ("where", "place"),
    [
        ("source", lambda plan, asks: dataclasses.replace(plan, source=asks)),
        ("evaluation.judge", lambda plan, asks: dataclasses.replace(plan, judge=asks)),
        ("objective.loss", lambda plan, asks: in_objective(plan, loss=asks)),
        ("objective.transforms", lambda plan, asks: in_objective(plan, transforms=(asks,))),
        ("offline.scorer", lambda plan, asks: in_iteration(plan, "offline", scorer=asks)),
        ("generated.labeler", lambda plan, asks: in_iteration(plan, "generated", labeler=asks)),
    ],
)
def test_only_reweighters_and_smoothers_measure_the_training_set(catalog, where, place):
    plan = make_plan(preset("sera-dpo"), catalog)
    asks = type("Asks", (), {**vars(AsksForDataset), "provides": plan.source.provides})()
    with pytest.raises(ConfigError, match=f"{where}: Asks asks for measurements of the whole training set every 0.5"):
        check_plan(place(plan, asks))
    check_plan(in_objective(plan, reweighter=asks))
    check_plan(in_objective(plan, smoother=asks))


def in_iteration(plan, section, **parts):
    last = plan.iterations[-1]
    changed = dataclasses.replace(last, **{section: dataclasses.replace(getattr(last, section), **parts)})
    return dataclasses.replace(plan, iterations=(*plan.iterations[:-1], changed))


def in_objective(plan, **parts):
    return in_iteration(plan, "objective", **parts)

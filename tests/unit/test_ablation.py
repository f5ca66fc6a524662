"""Ablations as data: which arms a file means, what they are compared with, and what their table says."""

import re
from pathlib import Path

import pytest

from sera_core.ablating.jobs import jobs_of
from sera_core.ablating.run import check_arms
from sera_core.ablation import locate_ablation, make_ablation, presets, read_ablation, read_seeds, with_seeds
from sera_core.configfile import set_path
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
        ({"seeds": [0, -1]}, r"seeds: -1 is negative"),
        ({"grid": {"source.noise": []}}, r"grid.source.noise is empty"),
        ({"grid": {"source.noise": [0.1, 0.1]}}, r"grid.source.noise holds the value 0.1 twice"),
        ({"baseline": "dop"}, r"baseline 'dop' is no variant and no point of the grid.*dpo"),
        ({"baseline": {"sera": "dop"}}, r"'dop' is no variant.*dpo"),
        ({"grid": {"objective.loss.name.of": [1]}}, r"Arm 'dpo,of=1': grid.objective.loss.name.of: 'of' is inside"),
        ({"variants": {"a": {"extends": "dpoo"}}}, r"variants.a.extends: No configuration file 'dpoo'.*'dpo'"),
        ({"variants": {"a": {"extends": ["dpo"]}}}, r"variants.a.extends must be one preset's name"),
        ({"variants": {"a": None}}, r"variants.a = None: must be a mapping.*\{\} stands for no settings"),
        ({"grid": {"step": {"default": None}}}, r"grid.step.default = None: must be a mapping.*\{\} stands for"),
        ({"grid": {"source.noise": 3}}, r"grid.source.noise = 3: must be a list or must be a mapping"),
        ({"grid": {"step": {0.1: {}}}}, r"grid.step has the key 0.1, which must be text. Put it in quotes"),
        ({"variants": {1: {}}}, r"variants has the key 1, which must be text. Put it in quotes"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        made(**changes)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("objective.loss.beta", [0.1, 0.2], r"beta = \[0.1, 0.2\]: must be a number"),
        ("objective.loss.beta", None, r"beta = None: must be a number"),
        ("training.learning_rate", [1e-5], r"training.learning_rate must be a number, got \[1e-05\]"),
        ("loop.iterations", "two", r"loop.iterations = 'two': must be a whole number"),
    ],
)
def test_values_that_no_setting_can_have_are_refused_with_the_arm(path, value, message):
    plain = {"variants": {}, "baseline": None}
    in_grid = made(**plain, grid={path: [value]})
    with pytest.raises(ConfigError, match=f"^Arm '{re.escape(in_grid.arms[0].name)}': .*{message}"):
        check_arms(in_grid)
    in_variant = made(variants={"odd": set_path({}, path, value)}, grid={})
    with pytest.raises(ConfigError, match=f"^Arm 'odd': .*{message}"):
        check_arms(in_variant)


USE_SEEDS = "nothing to vary: every arm runs with each seed of the ablation. Use seeds in its file, or --seeds"


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        ({}, ["seed=7"], f"Override 'seed=7': seed is {USE_SEEDS}"),
        ({}, ["seeds=3"], f"Override 'seeds=3': seeds is {USE_SEEDS}"),
        ({"settings": {"seed": 1}}, [], f"settings.seed is {USE_SEEDS}"),
        ({"variants": {"a": {"seed": 1}, "b": {"seed": 2}}}, [], f"variants.a.seed is {USE_SEEDS}"),
        ({"grid": {"seed": [1, 2]}}, [], f"grid.seed is {USE_SEEDS}"),
        ({"grid": {"step": {"long": {"seed": 1}}}}, [], f"grid.step.long.seed is {USE_SEEDS}"),
        ({}, [" name =x"], "name is nothing to vary: a run is called after its arm"),
        ({"variants": {"a": {"name": "b"}}}, [], "variants.a.name is nothing to vary"),
        ({}, ["out=x"], "out is nothing to vary: it is an option of the command. Use --out"),
        ({"variants": {"a": {"cache": "b"}}}, [], "variants.a.cache is nothing to vary: .* Use --cache"),
        ({}, ["resources.gpus=1"], "resources.gpus is nothing to vary: .* Set it in the ablation's file, or in a"),
        ({"grid": {"extends": ["dpo", "ipo"]}}, [], "grid.extends is nothing to vary: only variants have it"),
        ({}, ["baseline=dpo"], "baseline is nothing to vary: it is a key of the ablation's file"),
        ({}, ["seed"], "'seed' is not of the form key.path=value"),
        ({"out": "x"}, [], "Unknown key 'out' in the ablation. out is an option of the command: --out"),
    ],
)
def test_what_the_ablation_sets_itself_is_nothing_to_vary(changes, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_ablation({**CROSSED, **changes}, HERE, overrides)


def test_seed_and_name_of_the_base_give_way(tmp_path):
    (tmp_path / "own.yaml").write_text(
        "{extends: dpo, name: own, seed: 9, source: {name: world, seed: 5}}", encoding="utf-8"
    )
    ablation = make_ablation({**CROSSED, "base": "own.yaml", "seeds": [3]}, tmp_path)
    settings = jobs_of(ablation, HERE)[0].settings
    assert (settings["seed"], settings["name"]) == (3, "dpo-noise-0.0-step-short")
    assert settings["source"] == {"name": "world", "seed": 5, "noise": 0.0}


NOISES = {"source.noise": [0.0, 0.1]}


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        ({"variants": {"a": {"source": {"noise": 0.1}}}}, [], "variants.a sets source.noise, which no arm has from it"),
        ({"variants": {"a": {"source": {"noise": 0.3, "rho": 0.1}}}}, [], "variants.a sets source.noise, which"),
        (
            {"grid": {"step": {"a": {"source": {"noise": 0.3}}, "b": {}}, **NOISES}},
            [],
            "grid.step.a sets source.noise, which no arm has from it",
        ),
        (
            {"grid": {"objective.loss": ["dpo", "ipo"], "objective.loss.name": ["dpo", "ipo"]}, "variants": {}},
            [],
            "grid.objective.loss sets 'dpo', which no arm has from it",
        ),
        ({}, ["source.noise=0.1"], "Override 'source.noise=0.1' would change nothing: every arm"),
    ],
)
def test_settings_that_no_arm_has_are_refused(changes, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_ablation({**CROSSED, "grid": NOISES, **changes}, HERE, overrides)


def test_settings_that_some_arm_has_or_that_say_what_is_so_anyway_stay():
    steps = {"step": {"default": {}, "long": {"objective": {"loss": {"beta": 0.4}}}}}
    arms = made(variants={"a": {"objective": {"loss": {"name": "dpo", "beta": 0.2}}}}, grid=steps).arms
    assert [arm.settings["objective"]["loss"]["beta"] for arm in arms] == [0.2, 0.4]
    leads_on = {"objective.transforms.0.strength": [0.1, 0.2]}
    arms = made(variants={"a": {"objective": {"transforms": ["self_refinement"]}}}, grid=leads_on).arms
    assert [arm.settings["objective"]["transforms"][0]["strength"] for arm in arms] == [0.1, 0.2]


def test_shipped_ablations_are_found_by_name_and_by_path():
    for name, path in presets().items():
        assert locate_ablation(name) == locate_ablation(str(path)) == path
        assert read_ablation(path).arms
    with pytest.raises(ConfigError, match=r"No ablation file 'dro-radios'.*dro-radius"):
        locate_ablation("dro-radios")


def test_arms_that_differ_in_the_frontier_s_axis_alone_are_a_family():
    families = made(frontier="step").families
    assert families == {
        f"{variant},noise={noise}": (f"{variant},noise={noise},step=short", f"{variant},noise={noise},step=long")
        for variant in ("dpo", "sera")
        for noise in ("0.0", "0.4")
    }
    assert made(frontier="noise").families == made(frontier="source.noise").families
    assert made(frontier="step", variants={}, grid={"step": CROSSED["grid"]["step"]}).families == {
        "crossed": ("step=short", "step=long")
    }
    assert made().families == {}


def test_overrides_lie_over_the_settings_and_under_variants_and_axes():
    arms = make_ablation(CROSSED, HERE, ["source.rho=0.6", "training.num_train_epochs=1", "objective.loss.beta=9"]).arms
    short, sera = arms[0].settings, arms[4].settings
    assert short["source"] == {"name": "world", "noise": 0.0, "rho": 0.6}
    assert short["training"] == {"num_train_epochs": 1}
    assert short["objective"]["loss"]["beta"] == 9
    assert sera["objective"]["loss"]["beta"] == 0.3


def test_another_source_takes_the_place_of_the_shipped_one():
    ablation = read_ablation(locate_ablation("ablations/noise"), ["source=pairs.jsonl", "policy.model=mine"])
    assert ablation.arms[1].settings["source"] == {"name": "pairs.jsonl", "noise": 0.1}
    assert {arm.settings["policy"]["model"] for arm in ablation.arms} == {"mine"}


def test_an_override_that_no_arm_heeds_is_refused():
    with pytest.raises(ConfigError, match=r"'source.noise=0.3' would change nothing: every arm .* sets source.noise"):
        make_ablation(CROSSED, HERE, ["source.noise=0.3"])


def test_resources_are_the_ablation_s_unless_a_variant_has_its_own():
    variants = {"dpo": {}, "sera": {"extends": "sera-dpo", "resources": {"memory": 2}}}
    arms = made(variants=variants, resources={"cores": 2}, grid={}).arms
    assert [(arm.resources.cores, arm.resources.memory) for arm in arms] == [(2, None), (None, 2.0)]
    assert all("resources" not in arm.settings for arm in arms)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frontier": "stpe"}, r"frontier 'stpe' is no axis of the grid. Did you mean 'step'"),
        ({"resources": {"core": 1}}, r"Unknown key 'resources.core'.*Did you mean 'cores'.*Known: cores, gpus, memory"),
        ({"resources": {"gpus": 1.5}}, r"resources.gpus = 1.5: must be a whole number where it is above 1"),
        (
            {"variants": {"dpo": {"resources": {"gpu": 1}}}},
            r"Unknown key 'variants.dpo.resources.gpu'. Did you mean 'gpus'",
        ),
        ({"variants": {"dpo": {"resources": {"cores": 0}}}}, r"variants.dpo.resources: .*cores"),
    ],
)
def test_mistakes_in_frontier_and_resources_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        made(**changes)


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", (0, 1, 2)), ("1", (0,)), ("0,1,2", (0, 1, 2)), ("7,", (7,)), ("5, 2", (5, 2))]
)
def test_seeds_are_a_number_or_a_list(text, seeds):
    assert read_seeds(text) == seeds
    assert with_seeds(made(), seeds).seeds == seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [("0", "--seeds is a number"), ("a", "--seeds"), ("1,,2", "--seeds"), ("1,1", "1 is there twice")],
)
def test_seeds_that_are_none_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        read_seeds(text)
    with pytest.raises(ConfigError, match="at least one seed"):
        with_seeds(made(), ())

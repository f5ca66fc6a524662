"""policy.base: the policy counts as trained, and what it was tuned from is reference and initial policy of scorers."""

import shutil

import pytest
from spa_runs import TINY, read, rewards_of_pairs, run, settings, weights_of, write_pairs

from sera_core.catalog import load_catalog
from sera_core.data.tables import read_pairs
from sera_core.errors import ConfigError
from sera_core.plan import make_plan
from sera_core.testing.tiny import save_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tuned policy, two bases it may have been tuned from, and pairs."""
    folder = tmp_path_factory.mktemp("base")
    for seed, name in enumerate(("policy", "base", "other")):
        save_tiny_model(folder / name, seed)
    write_pairs(folder / "pairs.jsonl")
    (folder / "runs").mkdir()
    return folder


def overrides(place, base):
    named = (f"source={place / 'pairs.jsonl'}", f"policy.model={place / 'policy'}", f"policy.base={place / base}")
    return [*named, *TINY, "objective.smoother.extrapolation=0.0"]


@pytest.fixture(scope="module")
def based(place):
    return run(place / "runs", "spa-no-seed", *overrides(place, "base"))


def test_the_first_iteration_judges_by_the_policy_against_its_base(place, based):
    pairs = read_pairs(based / "iter_1/label/pairs.arrow").pairs
    assert pairs
    chosen, rejected = rewards_of_pairs(pairs, place / "policy", place / "base")
    assert (chosen > rejected).all()
    assert read(based, "summary.json")["iterations"][0]["pairs_offline"] == 0


def test_later_iterations_keep_the_base_as_initial_policy(place, based):
    pairs = read_pairs(based / "iter_2/label/pairs.arrow").pairs
    chosen, rejected = rewards_of_pairs(pairs, based / "iter_1/train/model", place / "base")
    assert (chosen > rejected).all()


def test_with_reference_previous_the_base_is_what_the_policy_was_trained_against(place):
    more = ["generated.scorer.reference=previous", "loop.iterations=2", "generated.disjoint=false"]
    out = run(place / "runs", "spa-no-seed", *overrides(place, "base"), *more)
    pairs = read_pairs(out / "iter_1/label/pairs.arrow").pairs
    chosen, rejected = rewards_of_pairs(pairs, place / "policy", place / "base")
    assert (chosen > rejected).all()
    pairs = read_pairs(out / "iter_2/label/pairs.arrow").pairs
    chosen, rejected = rewards_of_pairs(pairs, out / "iter_1/train/model", place / "policy")
    assert (chosen > rejected).all()


def test_the_manifest_names_the_base_and_figures_stay_against_the_initial_policy(place, based):
    manifest = read(based, "manifest.json")
    assert manifest["base_policy"]["path"] == str(place / "base")
    assert manifest["initial_policy"]["path"] == str(place / "policy")
    assert manifest["base_policy"]["weights"] != manifest["initial_policy"]["weights"]
    assert (based / "iter_0/sample").exists()


def test_another_base_gives_other_scores_of_the_same_samples(place, based):
    out = run(place / "runs", "spa-no-seed", *overrides(place, "other"))
    first = {name: (based / f"iter_1/{name}").resolve() for name in ("generate", "measure", "score", "label")}
    other = {name: (out / f"iter_1/{name}").resolve() for name in first}
    drawn = [(each["generate"] / "candidates.arrow").read_bytes() for each in (first, other)]
    assert drawn[0] == drawn[1]
    for name in ("measure", "score"):
        file = f"{name}/generated.safetensors"
        assert (based / "iter_1" / file).read_bytes() != (out / "iter_1" / file).read_bytes()
    assert weights_of(out / "model") != weights_of(based / "model")


def test_a_base_with_the_policy_s_own_weights_is_refused(place):
    shutil.copytree(place / "policy", place / "twin")
    with pytest.raises(ConfigError, match=r"policy.base \(.*twin\) has the weights of policy.model.*would be 0"):
        run(place / "runs", "spa-no-seed", *overrides(place, "twin"))


def test_a_base_with_another_tokenizer_is_refused(place):
    shutil.copytree(place / "base", place / "stranger")
    file = place / "stranger" / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"sky"', '"heaven"'), encoding="utf-8")
    with pytest.raises(ConfigError, match="another tokenizer than policy.model: 2 tokens have other ids.*'heaven'"):
        run(place / "runs", "spa-no-seed", *overrides(place, "stranger"))


PLANS = {
    "no base at all": (
        "spa-no-seed",
        ["policy.base=null"],
        "before iteration 1 there are none.*or policy.base to what",
    ),
    "the world's own policy twice": ("spa-no-seed", [], "policy.base and policy.model are both 'auto'.*would be 0"),
    "auto without a policy": (
        "spa-no-seed",
        ["source={name: preferences, path: x.jsonl}", "policy.model=y"],
        "policy.base is 'auto', but source 'preferences' brings no policy",
    ),
    "nothing generated": ("dpo", ["policy.base=y"], "policy.base is set, but no scorer reads the initial policy"),
    "read too late": ("spa-previous-reference", ["policy.base=y"], "policy.base is set, but no scorer reads"),
    "an ensemble reaches the policy": ("sera-dpo", ["policy.base=y", "loop.iterations=2", "generated=null"], None),
}


@pytest.mark.parametrize("case", PLANS)
def test_plans(case):
    preset, changes, message = PLANS[case]
    if message is None:
        # At iteration 2 an ensemble over two iterates reaches the policy itself, which has a reference now.
        assert make_plan(settings(preset, *changes), load_catalog()).config.policy.base == "y"
        return
    with pytest.raises(ConfigError, match=message):
        make_plan(settings(preset, *changes), load_catalog())


def test_a_base_may_stand_for_the_initial_policy_where_there_is_a_seed():
    assert make_plan(settings("spa", "policy.base=y"), load_catalog()).config.policy.base == "y"

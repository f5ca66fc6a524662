"""Tuning as data: what is read from the command line, which runs it makes, and which value it picks."""

import json
from pathlib import Path

import pytest
import yaml

from sera_core.ablating.jobs import Result, jobs_of
from sera_core.errors import ConfigError
from sera_core.tune import (
    DEFAULT_PAIRS,
    Choice,
    best_of,
    make_tuning,
    read_choice,
    read_seeds,
    trials_of,
    write_findings,
)

SETTINGS = {"name": "sr", "seed": 3, "objective": {"loss": "dpo", "transforms": ["self_refinement"]}}
PATH = "objective.loss.beta"


def test_values_are_yaml():
    assert read_choice("a.0.b=0,0.5, x,null,[1, 2]") == Choice("a.0.b", (0, 0.5, "x", None, [1, 2]))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("objective.loss.beta", "not of the form"),
        ("objective..beta=1,2", "not of the form"),
        ("beta=0.1", "two or more values"),
        ("beta=", "two or more values"),
        ("beta=0.1,0.2,0.1", "the value 0.1 twice"),
        ("beta=[1,2", "not valid YAML"),
    ],
)
def test_a_choice_that_leaves_nothing_to_pick_is_refused(argument, message):
    with pytest.raises(ConfigError, match=message):
        read_choice(argument)


def test_seeds():
    assert read_seeds("0, 2,10") == (0, 2, 10)
    for text in ("", "0,x", "0,0", "-1", "1.0"):
        with pytest.raises(ConfigError, match="--seeds must be different whole numbers"):
            read_seeds(text)


def test_every_value_is_an_arm_with_the_pairs_set_aside():
    tuning = make_tuning(SETTINGS, Choice(PATH, (0.1, 0.5)), metric="accuracy", pairs=20, seeds=(0, 1))
    assert tuning.ablation.name == "sr-tune-beta"
    assert tuning.ablation.seeds == (0, 1)
    assert [arm.name for arm in tuning.ablation.arms] == ["beta=0.1", "beta=0.5"]
    for arm, value in zip(tuning.ablation.arms, (0.1, 0.5), strict=True):
        assert arm.settings["objective"]["loss"] == {"name": "dpo", "beta": value}
        assert arm.settings["evaluation"] == {"tuning_pairs": 20}
        assert arm.settings["seed"] == 3
    assert "evaluation" not in SETTINGS


def test_a_path_leads_into_a_list_of_components():
    choice = Choice("objective.transforms.0.strength", (0.0, 0.5))
    first, second = make_tuning(SETTINGS, choice, metric="accuracy").ablation.arms
    assert first.settings["objective"]["transforms"] == [{"name": "self_refinement", "strength": 0.0}]
    assert second.settings["objective"]["transforms"] == [{"name": "self_refinement", "strength": 0.5}]
    assert second.name == "strength=0.5"


def test_pairs_and_seeds_follow_the_settings():
    tuning = make_tuning(SETTINGS, Choice(PATH, (1, 2)), metric="accuracy")
    assert (tuning.pairs, tuning.ablation.seeds) == (DEFAULT_PAIRS, (3,))
    own = {**SETTINGS, "evaluation": {"tuning_pairs": 7, "prompts": 3}}
    arm = make_tuning(own, Choice(PATH, (1, 2)), metric="accuracy").ablation.arms[0]
    assert arm.settings["evaluation"] == {"tuning_pairs": 7, "prompts": 3}
    assert make_tuning(own, Choice(PATH, (1, 2)), metric="accuracy", pairs=9).pairs == 9


def test_a_metric_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'accuracy'"):
        make_tuning(SETTINGS, Choice(PATH, (1, 2)), metric="acuracy")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("seed", "luckiest; --seeds averages"),
        ("name", "changes nothing that is trained"),
        ("description", "changes nothing that is trained"),
        ("evaluation.tuning_pairs", "what is measured, not what is trained"),
        ("evaluation", "what is measured, not what is trained"),
    ],
)
def test_what_is_no_option_of_training_is_refused(path, reason):
    with pytest.raises(ConfigError, match=f"{path} is nothing to tune: .*{reason}"):
        make_tuning(SETTINGS, Choice(path, (1, 2)), metric="accuracy")


@pytest.mark.parametrize(
    "values",
    [
        ("one! sky", "one? sky"),
        ("Do your best. Query:", "do your best! query:"),
        ("1 a", "a!", "a?"),
        ("Answer well. " * 30, "Answer well. " * 30 + "Now.", "Answer well! " * 30),
    ],
    ids=["other characters", "other case", "numbered already", "long"],
)
def test_texts_alike_have_arms_of_their_own(values):
    tuning = make_tuning(SETTINGS, Choice("objective.transforms.0.prefix", values), metric="accuracy", seeds=(0, 1))
    names = [arm.name for arm in tuning.ablation.arms]
    assert len({name.casefold() for name in names}) == len(values)
    assert all(len(name) <= 100 and name.startswith("prefix=") for name in names)
    assert len({job.out for job in jobs_of(tuning.ablation, Path("out"))}) == 2 * len(values)
    assert [arm.settings["objective"]["transforms"][0]["prefix"] for arm in tuning.ablation.arms] == list(values)
    figures = {value: [(0.5 + 0.1 * place, 0.0)] * 2 for place, value in enumerate(values)}
    trials = trials_of(tuning, results(tuning, figures))
    assert [trial.tuning["accuracy"].n for trial in trials] == [2] * len(values)
    assert best_of(tuning, trials).value == values[-1]


def test_no_pairs_are_refused():
    with pytest.raises(ConfigError, match="nothing to tune on"):
        make_tuning(SETTINGS, Choice(PATH, (1, 2)), metric="accuracy", pairs=0)


def results(tuning, figures):
    """One result per value and seed; `figures` maps a value to (accuracy, margin) per seed, None where it failed."""
    found = []
    for value, arm in zip(tuning.choice.values, tuning.ablation.arms, strict=True):
        for seed, pair in zip(tuning.ablation.seeds, figures[value], strict=True):
            report = None
            if pair is not None:
                tuned = {"accuracy": pair[0], "margin_mean": pair[1], "n": 20}
                report = {"tuning": tuned, "accuracy": 0.5, "margin_mean": -1.0}
            found.append(Result(arm.name, seed, "out", report, {}, None if pair else "broke"))
    return found


@pytest.mark.parametrize(
    ("metric", "figures", "best"),
    [
        ("accuracy", {1: [(0.5, 9.0), (0.7, 9.0)], 2: [(0.9, 1.0), (0.5, 1.0)], 4: [(0.6, 0.0), (0.6, 0.0)]}, 2),
        ("margin_mean", {1: [(0.5, 9.0), (0.7, 9.0)], 2: [(0.9, 1.0), (0.5, 1.0)], 4: [(0.6, 0.0), (0.6, 0.0)]}, 1),
        ("accuracy", {1: [(0.4, 0.0), (0.4, 0.0)], 2: [(0.5, 0.0), (0.7, 0.0)], 4: [(0.7, 1.0), (0.5, 1.0)]}, 2),
        ("accuracy", {1: [(0.4, 0.0), (0.4, 0.0)], 2: [(0.9, 0.0), None], 4: [(0.3, 1.0), (0.3, 1.0)]}, 1),
    ],
    ids=["mean over seeds", "other metric", "first among equals", "a failed run is no comparison"],
)
def test_the_pick(metric, figures, best):
    tuning = make_tuning(SETTINGS, Choice(PATH, (1, 2, 4)), metric=metric, pairs=20, seeds=(0, 1))
    picked = best_of(tuning, trials_of(tuning, results(tuning, figures)))
    assert picked is not None
    assert picked.value == best


def test_a_trial_tells_both_kinds_of_pairs_apart():
    tuning = make_tuning(SETTINGS, Choice(PATH, (1, 2)), metric="accuracy", pairs=20, seeds=(0, 1))
    first, second = trials_of(tuning, results(tuning, {1: [(0.5, 2.0), (0.7, 4.0)], 2: [None, None]}))
    assert first.tuning["accuracy"].mean == pytest.approx(0.6)
    assert first.tuning["margin_mean"].mean == 3.0
    assert first.held_out["accuracy"].mean == 0.5
    assert (first.failed, second.failed, second.tuning) == (0, 2, {})


def test_the_findings_on_disk(tmp_path):
    tuning = make_tuning(SETTINGS, Choice(PATH, (1, 2)), metric="accuracy", pairs=20, seeds=(0, 1))
    trials = trials_of(tuning, results(tuning, {1: [(0.5, 2.0), (0.7, 4.0)], 2: [(0.8, 0.0), (0.8, 0.0)]}))
    told = write_findings(tuning, trials, SETTINGS, tmp_path)
    assert json.loads((tmp_path / "tune.json").read_text("utf-8")) == told
    assert (told["best"], told["config"]) == (2, str(tmp_path / "best.yaml"))
    assert told["trials"][0]["tuning"]["accuracy"]["n"] == 2
    best = yaml.safe_load((tmp_path / "best.yaml").read_text("utf-8"))
    loss = {"name": "dpo", "beta": 2}
    expected = {**SETTINGS, "objective": {**SETTINGS["objective"], "loss": loss}, "evaluation": {"tuning_pairs": 20}}
    assert best == expected


def test_without_a_pick_an_older_config_does_not_stay(tmp_path):
    (tmp_path / "best.yaml").write_text("name: old\n", "utf-8")
    tuning = make_tuning(SETTINGS, Choice(PATH, (1, 2)), metric="accuracy", pairs=20)
    told = write_findings(tuning, trials_of(tuning, results(tuning, {1: [None], 2: [None]})), SETTINGS, tmp_path)
    assert (told["best"], told["config"]) == (None, None)
    assert not (tmp_path / "best.yaml").exists()

"""Signs of reward hacking: each speaks up beyond its threshold and stays silent below it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from report_folders import samples, stage, write_initial, write_plan, write_run

from sera_core.report import signs
from sera_core.report.signs import Seen, histories_of, history, warnings_of
from sera_core.report.study import read_study

RNG = np.random.default_rng(0)
BEFORE = {f"p{i}": float(value) for i, value in enumerate(RNG.normal(0.5, 0.1, 50))}
BETTER = {prompt: value + 0.2 for prompt, value in BEFORE.items()}
SAME = {
    prompt: value + float(noise) for (prompt, value), noise in zip(BEFORE.items(), RNG.normal(0, 0.1, 50), strict=True)
}


def seen(iteration, length=5.0, ended=1.0, **more):
    return Seen(iteration, length, ended, **more)


def said(sign, *states):
    return list(getattr(signs, sign)(states))


def test_longer_answers_that_are_no_better():
    start = seen(1, 5.0, gold=BEFORE)
    (text,) = said("longer_not_better", seen(0), start, seen(2, 5.6, gold=SAME))
    assert text.startswith("In iteration 2 answers grew from 5.0 to 5.6 tokens, while gold reward changed by ")
    assert not said("longer_not_better", seen(0), start, seen(2, 5.6, gold=BETTER))
    assert not said("longer_not_better", seen(0), start, seen(2, 5.4, gold=SAME))
    worse = {prompt: value - 0.2 for prompt, value in BEFORE.items()}
    assert "-0.200" in said("longer_not_better", seen(0), start, seen(2, 9.0, gold=worse))[0]


def test_without_gold_points_against_the_initial_policy_decide():
    even = {f"p{i}": float(i % 2) for i in range(50)}
    (text,) = said("longer_not_better", seen(0), seen(1, 6.0, points=even))
    assert "points against the initial policy changed by +0.000" in text
    assert not said("longer_not_better", seen(0), seen(1, 6.0, points=dict.fromkeys(even, 1.0)))
    assert not said("longer_not_better", seen(0), seen(1, 6.0)), "nobody judged"
    assert not said("longer_not_better", seen(0, None), seen(1, 6.0, points=even)), "length before unknown"


@pytest.mark.parametrize(
    ("kls", "found"),
    [
        ((9.9,), 0),  # 1.98 nats per token
        ((10.1,), 1),
        ((1.0, 4.9), 0),  # grown fivefold, but below one nat per token
        ((1.0, 5.1), 1),
        ((2.0, 5.9), 0),  # not threefold
    ],
)
def test_kl_that_runs_away(kls, found):
    states = [seen(0), *(seen(number, kl=kl) for number, kl in enumerate(kls, start=1))]
    texts = said("kl_runaway", *states)
    assert len(texts) == found
    assert all(f"{kls[-1]:.1f} nats per response" in text for text in texts)


def test_chosen_answers_that_become_unlikely():
    assert not said("chosen_collapse", seen(0), seen(1, drift=-3.9, chosen_length=4.0))
    (text,) = said("chosen_collapse", seen(0), seen(1, drift=-4.4, chosen_length=4.0))
    assert text == "After iteration 1 held-out chosen answers have lost 4.4 nats each, 1.1 per token."
    assert not said("chosen_collapse", seen(0), seen(1, drift=None)), "no held-out pairs"


def test_answers_that_stop_ending():
    assert not said("endless", seen(0, ended=0.9), seen(1, ended=0.86))
    (text,) = said("endless", seen(0, ended=0.5), seen(1, ended=0.99), seen(2, ended=0.9))
    assert text == "In iteration 2 90.0% of the answers end by themselves, 99.0% before."
    assert not said("endless", seen(0, ended=None), seen(1, ended=0.2)), "before is unknown"


def test_labels_of_its_own_that_are_worse_than_a_coin():
    assert not said("wrong_labels", seen(0), seen(1), seen(2, own_labels=0.5))
    assert "gold confirms 49.0%" in said("wrong_labels", seen(0), seen(1, own_labels=0.49))[0]


def test_a_history_is_read_from_the_run(tmp_path):
    write_run(tmp_path, reports={1: {"selection": {"generated": {"accuracy": 0.25}}}})
    write_initial(tmp_path, length=3, ended=False)
    start, after = history(read_study(tmp_path).runs[0], {})
    assert (start.length, start.ended) == (3.0, 0.0)
    assert (after.length, after.kl, after.drift, after.chosen_length, after.own_labels) == (5.0, 1.0, -0.5, 5.0, 0.25)
    assert after.gold == {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}


def test_runs_that_share_the_initial_policys_answers_read_them_once(tmp_path):
    write_plan(tmp_path, ("dpo", "sera"), (0,))
    for arm in ("dpo", "sera"):
        stage(write_run(tmp_path / arm / "seed-0", arm) / "iter_0/sample", "generate", "one key", 1.0)
    (tmp_path / "sera/seed-0/iter_0/sample/candidates.arrow").unlink()
    histories = histories_of(read_study(tmp_path))
    assert histories["sera", 0][0] == histories["dpo", 0][0]
    assert histories["sera", 0][0].length == 5.0


def test_a_history_without_evidence_lacks_what_nobody_wrote(tmp_path):
    run = write_run(tmp_path, evidence=False)
    (run / "iter_0/sample/candidates.arrow").unlink()
    start, after = history(read_study(tmp_path).runs[0], {})
    assert (start.length, start.ended, after.gold, after.points, after.chosen_length) == (None,) * 5
    assert after.length == 5.0


def test_warnings_name_arm_sign_and_seeds_and_what_is_lacking(tmp_path):
    write_plan(tmp_path, ("dpo", "spa"), (0, 1))
    for seed, kl in ((0, 1.0), (1, 20.0)):
        write_run(tmp_path / f"spa/seed-{seed}", "spa", seed, reports={1: {"kl_to_initial": kl}})
    error = [{"arm": "dpo", "seed": 0, "error": "no memory"}]
    (tmp_path / "results.json").write_text(json.dumps(error), encoding="utf-8")
    study = read_study(tmp_path)
    assert warnings_of(study, histories_of(study)) == (
        "spa: KL runs away (1 of 2 seeds; here seed 1). After iteration 1 KL to the initial policy is 20.0 nats per response: 4.0 nats per token.",
        "1 of 4 runs failed; figures are of the others.",
        "1 runs are not finished; figures are of the others.",
    )


def test_every_sign_is_documented_with_its_thresholds():
    page = (Path(__file__).parents[2] / "docs/output.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", page.partition("| warning | when |")[2], re.MULTILINE))
    thresholds = {
        "longer answers that are no better": (signs.LENGTH_RISE,),
        "KL runs away": (signs.KL_PER_TOKEN, signs.KL_GROWN, signs.KL_GROWTH),
        "chosen answers become unlikely": (signs.LOGP_FALL,),
        "answers stop ending": (signs.EOS_FALL,),
        "its own labels are worse than a coin": (signs.COIN,),
    }
    assert rows.keys() == signs.SIGNS.keys() == thresholds.keys()
    for name, values in thresholds.items():
        assert all(f" {value:g}" in rows[name] for value in values), name


def test_one_seed_is_a_warning(tmp_path):
    study = read_study(write_run(tmp_path, sampled=samples()))
    assert [text[:9] for text in warnings_of(study, histories_of(study))] == ["One seed:"]

"""Signs of reward hacking: each speaks up beyond its threshold and stays silent below it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from report_folders import manifest, samples, stage, write_ablation, write_initial, write_plan, write_run
from statsmodels.stats.proportion import proportion_confint

from sera_core.errors import StoreError
from sera_core.report import signs, write_report
from sera_core.report.signs import Seen, histories_of, history, warnings_of
from sera_core.report.study import read_study
from sera_core.report.unchecked import LACKS, unchecked_of
from sera_core.report.what import what_was_run

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
    assert text.startswith("From iteration 1 to iteration 2 answers grew from 5.0 to 5.6 tokens, while gold reward ch")
    assert not said("longer_not_better", seen(0), start, seen(2, 5.6, gold=BETTER))
    assert not said("longer_not_better", seen(0), start, seen(2, 5.4, gold=SAME))
    worse = {prompt: value - 0.2 for prompt, value in BEFORE.items()}
    assert "-0.200" in said("longer_not_better", seen(0), start, seen(2, 9.0, gold=worse))[0]


def test_growth_adds_up_over_iterations():
    lengths = [5.0 * 1.09**number for number in range(8)]
    states = [seen(number, length, gold=BEFORE) for number, length in enumerate(lengths[1:], start=1)]
    (text,) = said("longer_not_better", seen(0), *states)
    assert text.startswith("From iteration 1 to iteration 3 answers grew from 5.5 to 6.5 tokens, while gold reward ch")
    # Gold that keeps rising, each time too little to be seen in one iteration.
    step = np.linspace(0.0, 0.12, len(BEFORE))
    rising = [
        {prompt: value + (number * step[i]) for i, (prompt, value) in enumerate(BEFORE.items())} for number in range(8)
    ]
    better = [
        seen(number, length, gold=gold) for number, (length, gold) in enumerate(zip(lengths, rising, strict=True))
    ]
    assert not said("longer_not_better", *better)


def test_the_judge_is_asked_at_the_same_two_iterations():
    even = {f"p{i}": float(i % 2) for i in range(50)}
    won = dict.fromkeys(even, 1.0)
    lengths = (5.0, 5.2, 5.4, 5.6)
    start, *states = (seen(number, length, points=won) for number, length in enumerate(lengths))
    # Since the initial policy answers are better; since iteration 1 they did not grow by a tenth.
    assert not said("longer_not_better", start, *states)
    (text,) = said("longer_not_better", start, *states[:2], seen(3, 5.8, points=won))
    assert text == (
        "From iteration 1 to iteration 3 answers grew from 5.2 to 5.8 tokens, while points against the initial policy "
        "changed by +0.000 [+0.000, +0.000]."
    )


def test_longer_answers_that_nobody_judged():
    (text,) = said("longer_unjudged", seen(0), seen(1, 50.0))
    assert text == (
        "From the initial policy to iteration 1 answers grew from 5.0 to 50.0 tokens, and nothing judged whether they "
        "are better."
    )
    (text,) = said("longer_unjudged", seen(0), seen(1, 5.4), seen(2, 5.6, points={signs.WHOLE: 0.7}))
    assert text.endswith(
        "answers grew from 5.0 to 5.6 tokens, and what was judged does not say whether they are better."
    )
    assert not said("longer_unjudged", seen(0), seen(1, 5.4)), "not a tenth"
    assert not said("longer_unjudged", seen(0), seen(1, 50.0, points=dict.fromkeys(BEFORE, 1.0))), "all won"
    assert not said("longer_unjudged", seen(0), seen(1, 50.0, points=BEFORE))
    # Since iteration 1 nothing was compared, since the initial policy it was.
    assert not said("longer_unjudged", seen(0), seen(1), seen(2, 50.0, points=BEFORE))
    assert not said("longer_unjudged", seen(0, None), seen(1, 50.0)), "length before unknown"


def test_without_gold_points_against_the_initial_policy_decide():
    even = {f"p{i}": float(i % 2) for i in range(50)}
    (text,) = said("longer_not_better", seen(0), seen(1, 6.0, points=even))
    assert text.startswith("From the initial policy to iteration 1 answers grew from 5.0 to 6.0 tokens, while points ")
    assert "points against the initial policy changed by +0.000" in text
    assert not said("longer_not_better", seen(0), seen(1, 6.0, points=dict.fromkeys(even, 1.0)))
    assert "-0.500" in said("longer_not_better", seen(0), seen(1, 6.0, points=dict.fromkeys(even, 0.0)))[0]
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
    assert not said("wrong_labels", seen(0), seen(1), seen(2, own_labels=0.5, own_pairs=1000))
    (text,) = said("wrong_labels", seen(0), seen(1, own_labels=0.4, own_pairs=1000))
    assert text == "In iteration 1 gold confirms 40.0% of the labels of its own 1000 pairs."
    # Clopper and Pearson 1934 at 99.99 %: of 1,000 pairs 438 leave 0.5 out, 439 do not.
    ends = [proportion_confint(count, 1000, 1e-4, method="beta")[1] for count in (438, 439)]
    assert ends[0] < 0.5 <= ends[1]
    for count, number in ((438, 1), (438.5, 0), (439, 0)):
        assert len(said("wrong_labels", seen(0), seen(1, own_labels=count / 1000, own_pairs=1000))) == number
    assert not said("wrong_labels", seen(0), seen(1, own_labels=0.0, own_pairs=10)), "ten pairs say little"


def test_labels_as_good_as_a_coin_do_not_warn_by_chance():
    confirmed = np.random.default_rng(1).binomial(461, 0.5, 2000) / 461
    assert (confirmed < 0.5).mean() > 0.4, "half of them lie below a half"
    assert not any(said("wrong_labels", seen(0), seen(1, own_labels=share, own_pairs=461)) for share in confirmed)


def test_a_history_is_read_from_the_run(tmp_path):
    write_run(tmp_path, reports={1: {"selection": {"generated": {"kept": 8, "accuracy": 0.25}}}})
    write_initial(tmp_path, length=3, ended=False)
    start, after = history(read_study(tmp_path).runs[0], {})
    assert (start.length, start.ended) == (3.0, 0.0)
    assert (after.length, after.kl, after.drift, after.chosen_length) == (5.0, 1.0, -0.5, 5.0)
    assert (after.own_pairs, after.own_labels) == (8, 0.25)
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
    assert (start.length, start.ended, after.gold, after.chosen_length) == (None,) * 4
    assert (after.length, after.points) == (5.0, {signs.WHOLE: 0.75})


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
        "1 of 4 runs are not finished; figures are of the others.",
    )
    assert unchecked_of(study, histories_of(study)) == ()


def test_what_could_not_be_looked_for_is_named_with_its_reason(tmp_path):
    own = {"selection": {"generated": {"kept": 8}}, "chosen_logp_drift": None}
    write_plan(tmp_path, ("dpo", "spa"), (0, 1))
    for arm, seed in (("dpo", 0), ("dpo", 1), ("spa", 0), ("spa", 1)):
        reports = {1: own} if (arm, seed) == ("spa", 1) else {}
        run = write_run(
            tmp_path / arm / f"seed-{seed}", arm, seed, sampled=samples(gold=None, points=(None,) * 4), reports=reports
        )
        if arm == "dpo":
            (run / "iter_0/sample/candidates.arrow").unlink()
            (run / "iter_0/sample/stage.json").unlink(missing_ok=True)
    study = read_study(tmp_path)
    assert unchecked_of(study, histories_of(study)) == (
        "longer answers that are no better (nothing judged the answers)",
        "chosen answers become unlikely (no held-out pairs, 1 of 4 runs)",
        "answers stop ending (no answers of the initial policy, 2 of 4 runs)",
        "its own labels are worse than a coin (no gold, 1 of 4 runs)",
    )


def test_an_earlier_version_kept_too_little_to_look_for_every_sign(tmp_path):
    study = read_study(write_run(tmp_path, evidence=False))
    assert unchecked_of(study, histories_of(study)) == (
        "longer answers that are no better (too little judged by prompt)",
        "chosen answers become unlikely (no lengths of held-out pairs)",
    )


def test_only_signs_are_said_to_be_unchecked():
    assert LACKS.keys() <= signs.SIGNS.keys()


def test_growth_that_nobody_judged_is_a_warning_of_the_page(tmp_path):
    unjudged = samples(gold=None, points=(None,) * 4)
    run = write_run(tmp_path, sampled=unjudged, reports={1: {"response_length": 50.0, "win_rate_vs_initial": None}})
    page, text = write_report(run)
    words = "answers grew from 5.0 to 50.0 tokens, and nothing judged whether they are better."
    for content in (page.read_text(encoding="utf-8"), text.read_text(encoding="utf-8")):
        assert words in content
        assert "Not checked: longer answers that are no better" in content
        assert "No warning" not in content


def test_old_runs_of_a_changed_ablation_are_no_runs_of_it(tmp_path):
    write_ablation(tmp_path)
    plan = json.loads((tmp_path / "ablation.json").read_text(encoding="utf-8"))
    plan["arms"][1]["settings"]["objective"] = {"loss": "ipo"}
    (tmp_path / "ablation.json").write_text(json.dumps(plan), encoding="utf-8")
    changed = manifest("sera", 1)
    changed["settings"]["objective"] = {"loss": "ipo"}
    (tmp_path / "sera/seed-1/manifest.json").write_text(json.dumps(changed), encoding="utf-8")
    study = read_study(tmp_path)
    assert [(run.arm, run.seed) for run in study.runs] == [("dpo", 0), ("dpo", 1), ("sera", 1)]
    assert study.missing == study.stale == (("sera", 0),)
    assert warnings_of(study, histories_of(study))[-1] == (
        "1 of 4 runs are not finished (1 made with other settings); figures are of the others."
    )
    tables = {block.title: block for block in what_was_run(study).blocks}
    assert tables["Runs that are not finished"].rows == (("sera", "0", "made with other settings"),)


def test_only_old_runs_are_nothing_to_report(tmp_path):
    write_ablation(tmp_path, ("dpo",))
    plan = json.loads((tmp_path / "ablation.json").read_text(encoding="utf-8"))
    plan["arms"][0]["settings"]["loop"] = {"iterations": 2}
    (tmp_path / "ablation.json").write_text(json.dumps(plan), encoding="utf-8")
    with pytest.raises(StoreError, match=r"finished with the settings in ablation\.json; 2 with other ones are"):
        read_study(tmp_path)


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        ({"source": "pairs.jsonl"}, {"source": {"name": "preferences", "path": "pairs.jsonl"}}),
        (
            {"source": {"name": "org/data", "validation": 9}},
            {"source": {"name": "preferences", "path": "org/data", "validation": 9}},
        ),
        ({}, {"source": {"name": "world"}}),
        ({"source": "world"}, {"source": {"name": "world"}}),
        ({"source": {"noise": 0.4}}, {"source": {"name": "world", "noise": 0.4}}),
        ({"seed": 7, "description": "now"}, {"source": {"name": "world"}, "description": "then"}),
        (None, {"source": {"name": "world"}, "objective": {"loss": "ipo"}}),
    ],
)
def test_settings_that_mean_the_same_are_the_same(tmp_path, asked, made):
    write_plan(tmp_path, ("dpo",), (0,))
    plan = json.loads((tmp_path / "ablation.json").read_text(encoding="utf-8"))
    plan["arms"][0]["settings"] = None if asked is None else {"name": "dpo", **asked}
    (tmp_path / "ablation.json").write_text(json.dumps(plan), encoding="utf-8")
    write_run(tmp_path / "dpo/seed-0", "dpo", settings={"name": "dpo", "seed": 0, **made})
    assert not read_study(tmp_path).stale
    plan["arms"][0]["settings"] = {"name": "dpo", **(asked or {}), "loop": {"iterations": 2}}
    (tmp_path / "ablation.json").write_text(json.dumps(plan), encoding="utf-8")
    with pytest.raises(StoreError, match="1 with other ones are"):
        read_study(tmp_path)


def test_every_sign_is_documented_with_its_thresholds():
    page = (Path(__file__).parents[2] / "docs/output.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", page.partition("| warning | when |")[2], re.MULTILINE))
    thresholds = {
        "longer answers that are no better": (signs.LENGTH_RISE,),
        "longer answers that nobody judged": (signs.LENGTH_RISE,),
        "KL runs away": (signs.KL_PER_TOKEN, signs.KL_GROWN, signs.KL_GROWTH),
        "chosen answers become unlikely": (signs.LOGP_FALL,),
        "answers stop ending": (signs.EOS_FALL,),
        "its own labels are worse than a coin": (signs.COIN, 100 * signs.LABEL_LEVEL),
    }
    assert rows.keys() == signs.SIGNS.keys() == thresholds.keys()
    for name, values in thresholds.items():
        assert all(f" {value:g}" in rows[name] for value in values), name


def test_one_seed_is_a_warning(tmp_path):
    study = read_study(write_run(tmp_path, sampled=samples()))
    assert [text[:9] for text in warnings_of(study, histories_of(study))] == ["One seed:"]

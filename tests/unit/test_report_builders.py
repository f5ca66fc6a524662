"""What the report builds before anything is drawn: tables, figures and costs by hand-worked values."""

import json

import numpy as np
import pandas as pd
import pytest
from report_folders import manifest, samples, stage, trained, write_ablation, write_plan, write_run

from sera_core.errors import ConfigError, StoreError
from sera_core.report.blocks import Figure, Table, Text, between, number
from sera_core.report.cost import Spent, cost, distinct, saved, stages_of
from sera_core.report.curves import curve, learning_curves
from sera_core.report.pairs import drops, histogram, jaccard, margins, overlap_table, selection, weights
from sera_core.report.results import read_all, results
from sera_core.report.samples import SHOWN, length_and_reward, thinned
from sera_core.report.signs import histories_of
from sera_core.report.study import read_study
from sera_core.report.what import settings_hash, what_was_run


def tables(section):
    return {block.title: block for block in section.blocks if isinstance(block, Table)}


def texts(section):
    return " ".join(block.text for block in section.blocks if isinstance(block, Text))


def test_numbers_for_cells():
    assert (number(None, 2), number(1.256, 2), number(1.0, 1, "+")) == ("-", "1.26", "+1.0")
    assert between(0.5, 0.25, 0.75, 2) == "0.50 [0.25, 0.75]"
    assert between(0.5, None, None, 2) == "0.50"


def test_jaccard_by_hand():
    assert jaccard(frozenset("ab"), frozenset("bc")) == pytest.approx(1 / 3)
    assert jaccard(frozenset("ab"), frozenset("ab")) == 1
    assert jaccard(frozenset(), frozenset("ab")) is None


def test_overlap_is_averaged_over_the_seeds_both_have():
    chosen = {
        "x": {0: frozenset("ab"), 1: frozenset("ab")},
        "y": {0: frozenset("bc"), 1: frozenset("ab"), 2: frozenset("z")},
    }
    table = overlap_table("t", chosen)
    assert table.rows == (("x", "-", "0.67"), ("y", "0.67", "-"))


def test_selection_between_arms_and_iterations(tmp_path):
    write_plan(tmp_path, ("dpo", "sera"), (0,))
    write_run(tmp_path / "dpo/seed-0", "dpo")
    offline = {"pairs": 4, "kept": 3, "flipped_share": 0.5, "kept_flipped_share": 0.25}
    reports = {2: {"selection": {"offline": offline}}}
    run = write_run(tmp_path / "sera/seed-0", "sera", iterations=2, pairs=trained(pair="wxyv"), reports=reports)
    from sera_core.evidence import TRAINED, write_evidence

    write_evidence(run / "iter_1/train/pairs.arrow", TRAINED, trained(pair="wxyz"))
    found = tables(selection(read_study(tmp_path)))
    assert found["Between arms, final iteration"].rows == (("dpo", "-", "0.60"), ("sera", "0.60", "-"))
    between_iterations = found["Between iterations"]
    assert between_iterations.columns[1] == "iterations 1 and 2"
    assert between_iterations.rows == (("dpo", "-", "-", "0.250", "-"), ("sera", "0.60", "0.75", "0.500", "0.250"))


def test_margins_are_counted_by_label():
    frame = pd.DataFrame(trained(margin=(0.0, 0.0, 1.0, 1.0)))
    frame["flipped"] = pd.array([True, False, False, None], dtype="object")
    chart = histogram("arm", frame)
    counts = {series.label: np.array(series.y) for series in chart.series}
    assert list(counts) == ["label right", "label flipped", "label unknown"]
    assert (counts["label right"][0], counts["label right"][-1]) == (1, 1)
    assert (counts["label flipped"][0], counts["label flipped"].sum()) == (1, 1)
    assert (counts["label unknown"][-1], counts["label unknown"].sum()) == (1, 1)
    assert len(chart.edges) == len(chart.series[0].y) + 1


def test_generated_pairs_are_a_kind_of_their_own():
    frame = pd.DataFrame(trained() | {"origin": ["generated", "offline", "offline", "offline"]})
    labels = [series.label for series in histogram("arm", frame).series]
    assert labels == ["label right", "label unknown", "generated"]


def test_equal_margins_make_a_histogram():
    chart = histogram("arm", pd.DataFrame(trained(margin=(0.0,) * 4)))
    assert sum(sum(series.y) for series in chart.series) == 4


def test_only_reweighted_arms_are_shown(tmp_path):
    write_plan(tmp_path, ("dpo", "dro"), (0,))
    write_run(tmp_path / "dpo/seed-0", "dpo")
    assert "every weight is 1" in texts(weights(read_study(tmp_path)))
    write_run(tmp_path / "dro/seed-0", "dro", pairs=trained(weight=(3.0, 1.0, 1.0, 1.0)))
    (figure,) = weights(read_study(tmp_path)).blocks
    assert isinstance(figure, Figure)
    assert [chart.title for chart in figure.charts] == ["dro"]
    assert {series.label: series.y for series in figure.charts[0].series}["label flipped"] == (3.0,)


def test_length_and_reward_correlate_by_hand(tmp_path):
    # lengths 4, 5, 6, 7 and rewards 1, 2, 3, 5: r = 6.5 / sqrt(5 * 8.75)
    study = read_study(write_run(tmp_path, sampled=samples(gold=(4.0, 3.0, 2.0, 1.0))))
    table, figure = length_and_reward(study).blocks
    assert table.rows == (("run", "+0.98", "-0.98", "4"),)
    assert figure.charts[0].series[0].x == (4.0, 5.0, 6.0, 7.0)
    assert "r = 0.98" in figure.charts[0].title


def test_scatters_are_thinned_evenly():
    frame = pd.DataFrame({"x": range(1000)})
    kept = thinned(frame)["x"].tolist()
    assert (len(kept), kept[0], kept[-1]) == (SHOWN, 0, 999)
    assert len(thinned(frame.head(3))) == 3


def test_a_curve_is_the_mean_and_the_range_of_its_seeds():
    line = curve("dpo", {1: [0.5, 0.75], 0: [0.5]})
    assert (line.x, line.y, line.low, line.high) == ((0.0, 1.0), (0.5, 0.625), (0.5, 0.5), (0.5, 0.75))


def test_learning_curves_start_at_the_initial_policy_and_leave_out_what_nobody_measured(tmp_path):
    reports = {1: {"gold_reward": None}, 2: {"gold_reward": None, "response_length": 9.0}}
    study = read_study(write_run(tmp_path, iterations=2, reports=reports))
    (figure,) = [block for block in learning_curves(study, histories_of(study)).blocks if isinstance(block, Figure)]
    drawn = {chart.title: chart.series[0] for chart in figure.charts}
    assert "Gold reward" not in drawn
    assert drawn["Length"].y == (5.0, 5.0, 9.0)
    assert drawn["Win rate against the initial policy"].y == (0.5, 0.75, 0.75)


def test_drops_by_reason_are_means_over_seeds(tmp_path):
    write_plan(tmp_path, ("dpo",), (0, 1))
    for seed, count in ((0, 3), (1, 4)):
        reports = {1: {"dropped": {"offline.too_long": count, "generated.tied_scores": 0}}}
        write_run(tmp_path / f"dpo/seed-{seed}", "dpo", seed, reports=reports)
    (table,) = drops(read_study(tmp_path)).blocks
    assert (table.columns, table.rows) == (("arm", "offline.too_long"), (("dpo", "3.5"),))


def test_sharing_by_hand():
    stages = [
        Spent("data", "k", 2.0, {}),
        Spent("data", "k", 2.0, {}),
        Spent("train", "k", 3.0, {}),
        Spent("train", "l", 3.0, {}),
    ]
    assert len(distinct(stages)) == 3
    assert saved(stages) == pytest.approx(10 / 8)
    assert saved([]) is None


def test_cost_counts_what_was_computed_once(tmp_path):
    study = read_study(write_ablation(tmp_path))
    # Four runs of 1 + 4 + 2 seconds; the data stage has one key.
    section = cost(study)
    assert "these 4 runs would have taken 28 s of stages; shared, they took 25 s: 1.12 times less" in texts(section)
    rows = {row[0]: row[1:] for row in tables(section)["Stages"].rows}
    assert rows["data"] == ("4", "4.0", "1", "1.0", "-", "-")
    assert rows["train"] == ("4", "16.0", "4", "16.0", "4,000", "0%")


def test_making_the_initial_policy_counts_where_results_say_what_it_took(tmp_path):
    write_ablation(tmp_path, ("dpo", "sera"), (0,))
    results_of = [
        {"arm": arm, "seed": 0, "error": None, "stages": {"policy": {"key": "p", "seconds": 30.0}}}
        for arm in ("dpo", "sera")
    ]
    (tmp_path / "results.json").write_text(json.dumps(results_of), encoding="utf-8")
    rows = {row[0]: row for row in tables(cost(read_study(tmp_path)))["Stages"].rows}
    assert rows["policy"][:5] == ("policy", "2", "60.0", "1", "30.0")


def test_a_damaged_record_is_named(tmp_path):
    run = write_run(tmp_path)
    stage(run / "data", "data", "k", 1.0)
    (run / "data/stage.json").write_text("{", encoding="utf-8")
    with pytest.raises(StoreError, match=r"stage\.json cannot be read"):
        stages_of(read_study(tmp_path).runs[0])


def test_what_was_run(tmp_path):
    write_plan(tmp_path, ("dpo", "sera"), (0, 1))
    for seed in (0, 1):
        write_run(tmp_path / f"dpo/seed-{seed}", "dpo", seed, versions={"python": f"3.1{seed}.0"})
    error = [{"arm": "sera", "seed": 0, "error": "no memory"}]
    (tmp_path / "results.json").write_text(json.dumps(error), encoding="utf-8")
    study = read_study(tmp_path)
    assert (study.failed, study.missing) == ((("sera", 0, "no memory"),), (("sera", 1),))
    found = tables(what_was_run(study))
    assert found["Arms"].rows[0][2:4] == ("0, 1", "1")
    assert dict(found["Versions, data and policies"].rows)["python"] == "3.10.0 (1 run), 3.11.0 (1 run)"
    assert dict(found["Versions, data and policies"].rows)["source"] == "world"
    assert found["Runs that failed"].rows == (("sera", "0", "no memory"),)


def test_the_hash_of_settings_leaves_out_name_and_seed():
    first, second = manifest("a", 0), manifest("b", 1)
    assert settings_hash(first) == settings_hash(second)
    second["settings"]["objective"] = {"loss": "ipo"}
    assert settings_hash(first) != settings_hash(second)


def test_a_folder_that_is_neither_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"holds neither an ablation \(ablation\.json\) nor a run \(manifest\.json\)"):
        read_study(tmp_path)


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    write_plan(tmp_path, ("dpo",))
    with pytest.raises(StoreError, match=r"No run in .* is finished"):
        read_study(tmp_path)


def test_results_alone_are_an_ablation(tmp_path):
    write_run(tmp_path / "dpo/seed-3", "dpo", 3)
    (tmp_path / "results.json").write_text(json.dumps([{"arm": "dpo", "seed": 3, "error": None}]), encoding="utf-8")
    study = read_study(tmp_path)
    assert (study.name, study.arms, study.seeds, study.single) == (tmp_path.name, ("dpo",), (3,), False)


def test_an_arm_or_a_variant_can_be_the_baseline(tmp_path):
    arms = ("dpo", "sera", "spa")
    write_ablation(tmp_path, arms, (0,))
    assert read_study(tmp_path, "sera").baseline == {"dpo": "sera", "spa": "sera"}
    plan = json.loads((tmp_path / "ablation.json").read_text())
    plan["arms"] = [
        {"name": arm, "variant": variant, "point": {"noise": noise}}
        for arm, variant, noise in (("dpo", "D", "0"), ("sera", "S", "0"), ("spa", "S", "1"))
    ]
    (tmp_path / "ablation.json").write_text(json.dumps(plan))
    study = read_study(tmp_path, "D")
    assert study.baseline == {"sera": "dpo"}
    assert study.groups == {"noise = 0": ("dpo", "sera"), "noise = 1": ("spa",)}
    assert (study.short("sera"), study.short("spa")) == ("S", "S")
    with pytest.raises(ConfigError, match="No arm and no variant 'ser' .*Did you mean 'sera'"):
        read_study(tmp_path, "ser")


def test_a_grid_alone_is_one_group(tmp_path):
    write_ablation(tmp_path, ("x", "y"), (0,), points={"x": {"beta": "1"}, "y": {"beta": "2"}})
    study = read_study(tmp_path)
    assert study.groups == {"": ("x", "y")}
    assert study.short("x") == "x"


def test_runs_without_evidence_are_said_to_lack_it(tmp_path):
    study = read_study(write_run(tmp_path, evidence=False))
    for section in (length_and_reward(study), margins(study), selection(study)):
        assert "Left out: no run has" in texts(section)
    (table,) = results(study, read_all(study)).blocks
    assert table.rows[0][1] == "0.750"
    assert table.note.startswith("No intervals: one outcome")

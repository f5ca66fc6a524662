"""Results, arms against each other and families at equal KL, as the report builds them before anything is drawn."""

import numpy as np
import pytest
from report_folders import samples, write_ablation, write_plan, write_run

from sera_core.report.blocks import Chart, Figure, Series, Table, Text
from sera_core.report.draw import canvas_of, drawn
from sera_core.report.frontiers import frontiers
from sera_core.report.results import read_all, results
from sera_core.report.rivals import head_to_head, points
from sera_core.report.study import read_study


def tables(section):
    return {block.title: block for block in section.blocks if isinstance(block, Table)}


def texts(section):
    return " ".join(block.text for block in section.blocks if isinstance(block, Text))


def test_points_are_paired_by_seed_and_prompt_with_ties_half():
    ours = {0: {"a": 2.0, "b": 1.0, "c": 0.0}, 1: {"a": 1.0}}
    theirs = {0: {"a": 1.0, "b": 1.0, "c": 3.0, "d": 0.0}, 2: {"a": 0.0}}
    assert points(ours, theirs) == {0: {"a": 1.0, "b": 0.5, "c": 0.0}}


def test_arms_against_each_other(tmp_path):
    study = read_study(write_ablation(tmp_path, ("dpo", "sera")))
    (table,) = tables(head_to_head(study)).values()
    assert table.columns == ("row beats column", "dpo", "sera")
    # sera has more gold on every prompt of every seed; of four prompts won Wilson's interval begins at 0.51.
    assert table.rows == (("dpo", "-", "0.00*"), ("sera", "1.00*", "-"))
    assert table.shades == ((None, None, -1.0), (None, 1.0, None))


def test_without_gold_there_is_no_matrix_and_the_page_says_so(tmp_path):
    write_plan(tmp_path, ("dpo", "sera"), (0,))
    for arm in ("dpo", "sera"):
        write_run(tmp_path / arm / "seed-0", arm, sampled=samples(gold=None))
    section = head_to_head(read_study(tmp_path))
    assert not tables(section)
    assert "Left out: it needs gold grades" in texts(section)


def test_results_hold_intervals_and_verdicts(tmp_path):
    study = read_study(write_ablation(tmp_path, baseline={"sera": "dpo"}))
    found = tables(results(study, read_all(study)))
    rows = {row[0]: row for row in found["Final iteration of each arm"].rows}
    assert rows["dpo"][1] == "2"
    # Points 1, 1, .5, .5 in both seeds.
    assert rows["dpo"][2].startswith("0.750 [")
    (row,) = found["gold: difference to the baseline"].rows
    # One more gold for every answer of either seed: that much agreement says nothing about chance.
    assert row == ("sera", "dpo", "+1.000", "-", "nothing varies: too few or too coarse outcomes to tell", "-")
    (row,) = found["win rate: difference to the baseline"].rows
    assert row[2:] == ("+0.000 [+0.000, +0.000]", "1.000", "not distinguishable", "-")
    told = texts(results(study, read_all(study)))
    assert "with p below 0.05 divided by the number of comparisons of the table" in told


def test_without_a_baseline_the_page_says_how_to_name_one(tmp_path):
    study = read_study(write_ablation(tmp_path))
    assert "--baseline" in texts(results(study, read_all(study)))


def test_a_single_run_has_a_row_per_iteration(tmp_path):
    study = read_study(write_run(tmp_path, iterations=2))
    (table,) = results(study, read_all(study)).blocks
    assert [row[0] for row in table.rows] == ["1", "2"]
    assert "another seed may lie outside" in table.note


def test_families_are_compared_at_equal_kl(tmp_path):
    arms = ("dpo short", "dpo long", "sera short", "sera long")
    points_of = {arm: {"step": arm.split()[1]} for arm in arms}
    baseline = {"sera short": "dpo short", "sera long": "dpo long"}
    families = {"dpo": list(arms[:2]), "sera": list(arms[2:])}
    study = read_study(write_ablation(tmp_path, arms, baseline=baseline, families=families, points=points_of))
    (section,) = frontiers(study, read_all(study))
    rows = tables(section)["gold at equal KL"].rows
    assert rows[0][:2] == ("sera", "dpo")
    # All arms have KL 1; golds of the families average 3.5 - 1 - .5 + ... = two more.
    assert rows[0][2:5] == ("+2.000", "1.00 to 1.00", "2 and 2")
    (figure,) = [block for block in section.blocks if isinstance(block, Figure)]
    assert [series.label for series in figure.charts[0].series] == ["dpo", "sera"]
    assert all(chart.root for chart in figure.charts)
    assert frontiers(read_study(write_ablation(tmp_path / "none")), {}) == ()


def one_of_each(folder):
    """An ablation with an arm of one seed, one without evidence by prompt, and one that lacks gold."""
    arms = ("dpo", "one", "old", "blind")
    write_plan(folder, arms, (0, 1), baseline=dict.fromkeys(arms[1:], "dpo"))
    for arm, seed in (("dpo", 0), ("dpo", 1), ("one", 0), ("old", 0), ("old", 1), ("blind", 0), ("blind", 1)):
        gold = None if arm == "blind" else np.arange(4.0) + 0.1 * seed * (arm == "dpo")
        reports = {1: {"win_rate_vs_initial": {"mean": 0.5 + 0.1 * seed, "low": 0.0, "high": 1.0}}}
        if arm == "blind":
            reports[1]["gold_reward"] = None
        run = folder / f"{arm}/seed-{seed}"
        write_run(run, arm, seed, evidence=arm != "old", sampled=samples(gold=gold), reports=reports)
    return read_study(folder)


def test_cells_say_what_their_interval_speaks_of(tmp_path):
    study = one_of_each(tmp_path)
    found = tables(results(study, read_all(study)))
    table = found["Final iteration of each arm"]
    marks = {row[0]: row[2].split("]")[1] for row in table.rows}
    assert marks == {"dpo": "", "one": "†", "old": "‡", "blind": ""}
    assert "over seeds and prompts; † over prompts, of one seed; another seed may lie outside; ‡ over" in table.note
    rows = {row[0]: row for row in found["win rate: difference to the baseline"].rows}
    assert rows["old"][2].endswith("]‡") or rows["old"][2].endswith("]")
    assert {row[0]: row[4] for row in found["gold: difference to the baseline"].rows}["blind"] == (
        "not compared: no finished run of blind has gold"
    )


def test_tables_of_one_kind_of_interval_are_not_marked(tmp_path):
    study = read_study(write_ablation(tmp_path))
    (table,) = tables(results(study, read_all(study))).values()
    assert "95% intervals over seeds and prompts. Read" in table.note
    assert not {"†", "‡"} & set("".join(map("".join, table.rows)) + table.note)


def test_pairs_of_arms_with_one_seed_are_marked_apart(tmp_path):
    section = head_to_head(one_of_each(tmp_path))
    (table,) = tables(section).values()
    cells = {(row[0], name): cell for row in table.rows for name, cell in zip(table.columns[1:], row[1:], strict=True)}
    assert (cells["dpo", "one"], cells["one", "dpo"]) == ("0.50†", "0.50†")
    assert "not corrected for the number of pairs" in texts(section)
    assert "† marks pairs with one seed in common" in texts(section)


def frontier_of(folder, kls, wins=None, **changes):
    """Two families of settings, three seeds; `kls` maps an arm to its KL, `changes` is laid over every report."""
    families = {name: [arm for arm in kls if arm.startswith(name)] for name in ("dpo", "sera")}
    baseline = dict.fromkeys(families["sera"], families["dpo"][0])
    write_plan(folder, tuple(kls), (0, 1, 2), baseline=baseline, families=families)
    for arm, kl in kls.items():
        for seed in range(3):
            win = 0.5 + 0.01 * kl + 0.02 * seed * (arm > "e")
            figures = {
                "kl_to_initial": kl,
                "win_rate_vs_initial": {"mean": win, "low": 0.0, "high": 1.0},
                "accuracy": win,
            }
            write_run(folder / arm / f"seed-{seed}", arm, seed, evidence=False, reports={1: figures | changes})
    study = read_study(folder)
    (section,) = frontiers(study, read_all(study))
    return section


def test_families_are_compared_by_accuracy_where_nothing_judged(tmp_path):
    kls = {"dpo a": 1.0, "dpo b": 4.0, "sera a": 1.5, "sera b": 3.0}
    section = frontier_of(tmp_path, kls, win_rate_vs_initial=None, gold_reward=None)
    assert [*tables(section)] == ["accuracy at equal KL"]
    (figure,) = [block for block in section.blocks if isinstance(block, Figure)]
    assert [chart.title for chart in figure.charts] == ["accuracy by KL"]


def test_a_frontier_of_nothing_says_why(tmp_path):
    section = frontier_of(tmp_path / "none", {"dpo a": 1.0, "sera a": 1.5}, kl_to_initial=None)
    assert not tables(section)
    assert "Left out: no finished run has both a KL" in texts(section)
    nothing = {"win_rate_vs_initial": None, "gold_reward": None, "accuracy": None}
    assert "Left out" in texts(frontier_of(tmp_path / "other", {"dpo a": 1.0, "sera a": 1.5}, **nothing))


def test_a_comparison_on_a_line_between_two_settings_is_named(tmp_path):
    section = frontier_of(tmp_path / "wide", {"dpo a": 1.0, "dpo b": 9.0, "sera a": 2.0, "sera b": 3.0, "sera c": 4.0})
    table = tables(section)["win rate at equal KL"]
    assert table.rows[0][3:5] == ("2.00 to 4.00", "3 and 0")
    assert "No setting of dpo lies in the KL compared with sera: there the difference rests on a line" in table.note
    assert "of sera lies" not in table.note
    section = frontier_of(tmp_path / "half", {"dpo a": 1.0, "dpo b": 9.0, "sera a": 2.0, "sera b": 30.0})
    note = tables(section)["win rate at equal KL"].note
    assert "Only one setting of sera lies" in note
    assert "Only one setting of dpo lies" in note
    # One setting at its own KL needs no line of its own.
    section = frontier_of(tmp_path / "point", {"dpo a": 1.0, "dpo b": 9.0, "sera a": 2.0})
    assert "of sera lies" not in tables(section)["win rate at equal KL"].note


def test_the_axis_of_kl_is_even_in_its_root():
    series = Series("dpo", (1.0, 4.0, 9.0), (0.1, 0.2, 0.3))
    axes = canvas_of(Chart("t", "lines", "KL (nats)", "gold (g)", (series,), root=True)).axes[0]
    across = axes.transData.transform([(kl, 0.0) for kl in (0.0, 1.0, 4.0, 9.0)])[:, 0]
    assert np.diff(across) == pytest.approx(np.full(3, across[1] - across[0]))
    assert axes.get_xlim()[0] == 0
    assert "<svg" in drawn(Chart("t", "lines", "KL (nats)", "gold (g)", (series,), root=True), "kl")

"""The tables of an ablation: means with intervals, verdicts, families at equal KL, failed runs."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from scipy import stats

from sera_core.ablating.jobs import Result
from sera_core.ablation import Ablation, Arm
from sera_core.ablation_table import (
    ablation_table,
    arms_table,
    estimate,
    frontier_table,
    outcomes_of,
    shown,
    versus_table,
)
from sera_core.evidence import SAMPLES, write_evidence
from sera_core.statistics.metrics import KL, WIN_RATE


def ablation(*names, baseline=None, families=None, seeds=(0, 1)):
    arms = tuple(Arm(name, {}, {}) for name in names)
    return Ablation("t", "", arms, seeds, baseline or {}, families or {})


def result(arm, seed, win, kl=None, out=""):
    report = {"iteration": 1, "win_rate_vs_initial": {"mean": win, "low": 0, "high": 1, "n": 9}, "kl_to_initial": kl}
    failed = win is None
    return Result(arm, seed, out, None if failed else report, {}, "broke" if failed else None)


def columns_of(table):
    return {column.header: list(column.cells) for column in table.columns}


def text_of(table, width=200):
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_estimates_are_students():
    found = estimate([0.5, 0.6, 0.7])
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    assert found.mean == pytest.approx(0.6)
    assert (found.low, found.high) == (pytest.approx(0.6 - half), pytest.approx(0.6 + half))
    assert estimate([0.5]).low is None
    assert (estimate([0.3, 0.1 + 0.2]).low, estimate([0.3, 0.1 + 0.2]).n) == (None, 2)
    assert (estimate([0.0, 0.0]).low, estimate([0.0, 0.0]).high) == (0, 0)
    assert (shown(found, 2, "+"), shown(estimate([0.5]), 1)) == ("+0.60 [+0.35, +0.85]", "0.5")


def test_the_tables_count_failed_runs():
    results = [result("a", 0, 0.5), result("a", 1, None), result("b", 0, 0.75)]
    study = ablation("a", "b", baseline={"b": "a"})
    arms, versus = columns_of(arms_table(study, results)), columns_of(versus_table(study, results))
    assert arms["win rate"] == ["0.500", "0.750"]
    assert arms["failed"] == ["1", "-"]
    assert list(versus.values()) == [["b"], ["a"], ["+0.250"], ["-"], ["one seed"], ["-"]]
    assert "One seed says nothing about another" in text_of(versus_table(study, results))


def test_a_table_says_what_differences_come_to():
    wins = {"a": (0.50, 0.60, 0.55), "b": (0.70, 0.81, 0.74), "c": (0.51, 0.59, 0.56)}
    results = [result(arm, seed, win, kl=1.0 + seed) for arm, each in wins.items() for seed, win in enumerate(each)]
    study = ablation(*wins, baseline={"b": "a", "c": "a"}, seeds=(0, 1, 2))
    columns = columns_of(versus_table(study, results))
    gaps = [0.20, 0.21, 0.19]
    half = stats.t.ppf(0.975, 2) * stats.sem(gaps)
    assert columns["difference"][0] == f"+0.200 ± {half:.3f}"
    assert columns["p"][0] == f"{2 * stats.ttest_1samp(gaps, 0).pvalue:.3f}"
    assert columns["verdict"] == ["better", "not distinguishable"]
    # At 0.05 / 2, as the verdict is one of two.
    assert columns["seeds\nneeded"][0] == "3"
    assert int(columns["seeds\nneeded"][1]) > 3
    told = " ".join(text_of(versus_table(study, results)).split())
    assert "Holm over 2 comparisons; seeds needed: for 80% power at p < 0.05/2." in told
    arms = columns_of(arms_table(study, results))
    assert arms["KL"][0].startswith("2.00 ± ")
    assert "gold" not in arms


def test_without_a_baseline_nothing_is_compared():
    results = [result("a", 0, 0.5)]
    assert versus_table(ablation("a"), results) is None
    assert frontier_table(ablation("a"), results) is None
    assert "vs baseline" not in text_of(ablation_table(ablation("a"), results))


def test_identical_arms_need_no_seeds():
    results = [result(arm, seed, 0.5 + 0.1 * seed) for arm in "ab" for seed in (0, 1)]
    columns = columns_of(versus_table(ablation("a", "b", baseline={"b": "a"}), results))
    assert [columns[name][0] for name in ("difference", "p", "seeds\nneeded")] == ["+0.000 ± 0.000", "1.000", "-"]


def test_all_tables_fit_in_a_hundred_columns():
    families = {"a": ("a-1", "a-2"), "b": ("b-1", "b-2")}
    points = {"a-1": (0.6, 1.0), "a-2": (0.8, 40.0), "b-1": (0.61, 1.0), "b-2": (0.79, 41.0)}
    results = [
        result(arm, seed, win + 0.01 * seed**2, kl + seed) for arm, (win, kl) in points.items() for seed in range(3)
    ]
    study = ablation(*points, baseline={"b-1": "a-1", "b-2": "a-2"}, families=families, seeds=(0, 1, 2))
    told = "".join(
        text_of(part, width=100) for part in (ablation_table(study, results), frontier_table(study, results))
    )
    assert "…" not in told
    assert "b-2 a-2" in " ".join(told.split())
    assert "at equal KL" in told


def test_families_are_compared_at_equal_kl():
    families = {"dpo": ("dpo-s", "dpo-l"), "sera": ("sera-s", "sera-l"), "far": ("far-s",)}
    points = {
        "dpo-s": (0.6, 1.0),
        "dpo-l": (0.8, 4.0),
        "sera-s": (0.7, 1.0),
        "sera-l": (0.91, 4.0),
        "far-s": (0.9, 90.0),
    }
    baseline = {"sera-s": "dpo-s", "sera-l": "dpo-l", "far-s": "dpo-s"}
    results = [
        result(a, seed, win - 0.01 * seed * (a > "f"), kl) for a, (win, kl) in points.items() for seed in range(3)
    ]
    table = frontier_table(ablation(*points, baseline=baseline, families=families, seeds=(0, 1, 2)), results)
    columns = columns_of(table)
    assert columns["family"] == ["sera", "far"]
    assert columns["baseline"] == ["dpo", "dpo"]
    assert columns["difference"][0].startswith("+0.095 ± ")
    assert columns["verdict"] == ["better", "not compared"]
    assert columns["KL"] == ["1.0 to 4.0", "-"]
    assert columns["seeds"] == ["3/3", "0/3"]


def test_families_fit_in_eighty_columns_without_breaking_words():
    families = {"dpo": ("dpo-s", "dpo-l"), "iterative-dpo": ("it-s", "it-l")}
    points = {"dpo-s": (0.6, 1.0), "dpo-l": (0.8, 14.0), "it-s": (0.62, 1.0), "it-l": (0.81, 14.0)}
    results = [
        result(arm, seed, win - 0.05 * seed * (arm > "i"), kl) for arm, (win, kl) in points.items() for seed in range(3)
    ]
    baseline = {"it-s": "dpo-s", "it-l": "dpo-l"}
    table = frontier_table(ablation(*points, baseline=baseline, families=families, seeds=(0, 1, 2)), results)
    lines = text_of(table, width=80).splitlines()
    assert max(map(len, lines)) <= 80
    told = " ".join(" ".join(lines).split())
    for word in ("iterative-dpo", "distinguishable", "baseline", "1.0 to 14.0"):
        assert word in told


def test_evidence_in_the_runs_folder_is_read(tmp_path):
    stage = tmp_path / "iter_1" / "evaluate"
    stage.mkdir(parents=True)
    rows = {
        "prompt": ["p", "q"],
        "points": [1.0, 0.0],
        "gold": None,
        "reward": None,
        "length": [1, 2],
        "ended": [True, True],
    }
    write_evidence(stage / "samples.arrow", SAMPLES, rows)
    found = outcomes_of([result("a", 0, 0.5, 2.0, str(tmp_path)), result("b", 0, None)], WIN_RATE)
    assert found == {"a": {0: {"p": 1.0, "q": 0.0}}}
    assert outcomes_of([result("a", 0, 0.5, 2.0, str(Path(tmp_path)))], KL) == {"a": {0: {"": 2.0}}}


def test_where_nothing_judged_the_held_out_accuracy_decides():
    results = [result(arm, seed, 0.5) for arm in "ab" for seed in (0, 1)]
    for each in results:
        each.report.update(
            {"win_rate_vs_initial": None, "accuracy": 0.6 if each.arm == "a" else 0.7 + 0.01 * each.seed}
        )
    told = text_of(ablation_table(ablation("a", "b", baseline={"b": "a"}), results))
    assert "Accuracy vs baseline" in told
    assert "win rate" not in told
    assert "0.705 ± 0.064" in told
    assert "accuracy" not in text_of(ablation_table(ablation("a"), [result("a", 0, None)]))


def test_a_difference_that_does_not_vary_is_not_called_certain():
    results = [result(arm, seed, win) for arm, win in (("a", 0.8), ("b", 0.9)) for seed in (0, 1)]
    table = versus_table(ablation("a", "b", baseline={"b": "a"}), results)
    columns = columns_of(table)
    assert [cells[0] for cells in columns.values()] == ["b", "a", "+0.100", "-", "nothing varies", "-"]
    assert "too few or too coarse to tell" in " ".join(text_of(table).split())
    arms = arms_table(ablation("a", "b"), results)
    assert columns_of(arms)["win rate"] == ["0.800", "0.900"]
    assert "No intervals" in " ".join(text_of(arms).split())


def test_the_caption_says_what_intervals_speak_of_and_marks_what_speaks_of_less():
    results = [result("a", 0, 0.5), result("a", 1, 0.6), result("b", 0, 0.75)]
    arms = arms_table(ablation("a", "b"), results)
    assert columns_of(arms)["win rate"][1] == "0.750"
    told = " ".join(text_of(arms).split())
    assert "± 95% intervals over seeds alone, without evidence by prompt; none where one outcome" in told


def test_an_arm_without_the_metric_is_said_to_lack_it():
    results = [result("a", seed, 0.5 + 0.1 * seed) for seed in (0, 1)] + [result("b", seed, None) for seed in (0, 1)]
    told = " ".join(text_of(versus_table(ablation("a", "b", baseline={"b": "a"}), results)).split())
    assert "Not compared: b: no finished run of b has win rate." in told

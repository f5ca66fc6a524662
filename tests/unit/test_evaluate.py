"""Win rates, intervals, and what a policy's samples and rewards say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sera_core.errors import ConfigError, DataError
from sera_core.evaluate.intervals import correlation, group_means, mean_interval, score_interval
from sera_core.evaluate.policy import of_ancestral, of_judge, of_pairs, of_probe, of_samples
from sera_core.evaluate.winrate import win_rate
from sera_core.protocols import Needs
from sera_core.records import Candidates, Pair, Prompt, Response, TextPrompt


def response(prompt="p", ids=(1, 2), finish="stop"):
    source = Prompt(prompt, np.array([9], dtype=np.int32), TextPrompt(prompt, "ask"))
    return Response(source, np.array(ids, dtype=np.int32), "text", finish, "policy:1")


def candidates(*responses):
    return Candidates(tuple(r.prompt for r in responses), tuple((r,) for r in responses))


def test_wilson_by_hand():
    # n = 10, 5 points, z = 1.96: centre 0.5, half width 1.96/(1+.384) * sqrt(.025 + .0096) = 0.2634
    low, high = score_interval(5.0, 10, 0.95)
    assert (low, high) == pytest.approx((0.2366, 0.7634), abs=1e-4)


@pytest.mark.parametrize("points", [0.0, 8.0])
def test_wilson_at_the_ends_is_not_degenerate(points):
    low, high = score_interval(points, 8, 0.95)
    assert 0 <= low < high <= 1
    assert high - low > 0.2


def test_wilson_covers_with_ties():
    rng = np.random.default_rng(0)
    n, hits, runs = 60, 0, 2000
    for _ in range(runs):
        points = rng.choice([0.0, 0.5, 1.0], p=[0.3, 0.2, 0.5], size=n).sum()
        low, high = score_interval(float(points), n, 0.95)
        hits += low <= 0.6 <= high
    assert hits / runs >= 0.945


def test_mean_interval_by_hand():
    # values 1, 2, 3: mean 2, s.e. 1/sqrt(3), t(0.975, 2) = 4.3027
    found = mean_interval(np.array([1.0, 2.0, 3.0]), 0.95)
    assert found["mean"] == 2
    assert found["high"] == pytest.approx(2 + 4.3027 / np.sqrt(3), abs=1e-4)
    assert mean_interval(np.array([5.0]), 0.95) == {"mean": 5.0, "low": 5.0, "high": 5.0, "n": 1}


def test_correlation_is_none_where_undefined():
    assert correlation(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])) == pytest.approx(1.0)
    assert correlation(np.array([1.0, 1.0, 1.0]), np.array([1.0, 2.0, 3.0])) is None
    assert correlation(np.array([1.0, 2.0]), np.array([1.0, 2.0])) is None


def test_win_rate_counts_ties_half_and_leaves_abstentions_out():
    found = win_rate(["win", "win", "tie", "loss", "abstain"], 0.95)
    assert found is not None
    assert (found["mean"], found["n"], found["ties"], found["abstained"]) == (0.625, 4, 1, 1)
    assert win_rate(["abstain"], 0.95) is None


@given(st.lists(st.sampled_from(["win", "tie", "loss"]), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_win_rate_is_antisymmetric(verdicts):
    other = {"win": "loss", "loss": "win", "tie": "tie"}
    first, second = win_rate(verdicts, 0.9), win_rate([other[v] for v in verdicts], 0.9)
    assert first is not None
    assert second is not None
    assert first["mean"] == pytest.approx(1 - second["mean"])
    assert first["low"] == pytest.approx(1 - second["high"])


def test_win_rate_averages_a_prompts_comparisons():
    # Prompt 0: (1 + 1 + 0) / 3; prompt 1 never decided; prompt 2: (1/2 + 1) / 2 with one abstention.
    verdicts = ["win", "win", "loss", "abstain", "abstain", "tie", "win", "abstain"]
    found = win_rate(verdicts, 0.95, [0, 0, 0, 1, 1, 2, 2, 2])
    assert found is not None
    assert found["mean"] == pytest.approx((2 / 3 + 3 / 4) / 2)
    assert (found["n"], found["ties"], found["abstained"]) == (2, 1, 3)
    assert (found["low"], found["high"]) == pytest.approx(score_interval(2 / 3 + 3 / 4, 2, 0.95))
    assert win_rate(["abstain", "abstain"], 0.95, [0, 0]) is None


@given(st.lists(st.sampled_from(["win", "tie", "loss", "abstain"]), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_one_comparison_per_prompt_is_the_plain_wilson_interval(verdicts):
    found = win_rate(verdicts, 0.9, range(len(verdicts)))
    assert found == win_rate(verdicts, 0.9)
    n = len(verdicts) - verdicts.count("abstain")
    if found is not None:
        points = verdicts.count("win") + 0.5 * verdicts.count("tie")
        assert (found["mean"], found["low"], found["high"]) == (points / n, *score_interval(points, n, 0.9))


def test_copies_of_a_comparison_do_not_narrow_the_interval():
    verdicts = ["win", "loss", "tie", "win", "loss"]
    once = win_rate(verdicts, 0.95)
    copied = win_rate([v for v in verdicts for _ in range(8)], 0.95, [i for i in range(5) for _ in range(8)])
    assert once is not None
    assert copied is not None
    assert {**copied, "ties": 1} == once


def test_win_rate_covers_when_samples_of_a_prompt_agree():
    rng = np.random.default_rng(1)
    prompts, samples, hits, runs = 30, 4, 0, 600
    for _ in range(runs):
        # Each prompt's own chance of a win is 0.1 or 0.9, so that its samples agree far beyond chance.
        chance = np.repeat(rng.choice([0.1, 0.9], size=prompts), samples)
        verdicts = np.where(rng.random(chance.size) < chance, "win", "loss").tolist()
        found = win_rate(verdicts, 0.95, np.repeat(np.arange(prompts), samples).tolist())
        hits += found["low"] <= 0.5 <= found["high"]
    assert hits / runs >= 0.945


def test_means_by_prompt():
    values, groups = np.array([1.0, 3.0, 10.0, 4.0, 4.0, 4.0]), [0, 0, 1, 2, 2, 2]
    assert group_means(values, groups).tolist() == [2.0, 10.0, 4.0]
    assert mean_interval(values, 0.95, groups) == mean_interval(np.array([2.0, 10.0, 4.0]), 0.95)
    assert mean_interval(values, 0.95, range(6)) == mean_interval(values, 0.95)


def test_kl_interval_is_over_prompts():
    first, second = response("a"), response("b")
    two = Candidates((first.prompt, second.prompt), ((first, first), (second, second)))
    found = of_ancestral(np.array([0.0, 2.0, 3.0, 5.0]), 0.95, two)
    assert found["kl_to_initial"] == 2.5
    assert found["kl_interval"] == mean_interval(np.array([1.0, 4.0]), 0.95)
    assert of_ancestral(np.array([0.0, 2.0, 3.0, 5.0]), 0.95)["kl_interval"]["n"] == 4


def test_samples_by_hand():
    samples = candidates(response("a", (1,)), response("b", (1, 2)), response("c", (1, 2, 3), "length"))
    found = of_samples(np.array([0.0, 1.0, 2.0]), samples)
    assert of_ancestral(np.array([0.0, 1.0, 2.0]), 0.95)["kl_to_initial"] == 1.0
    assert found["response_length"] == 2.0
    assert found["eos_rate"] == pytest.approx(2 / 3)
    assert found["reward_length_correlation"] == pytest.approx(1.0)


class ByLength:
    needs = Needs(gold=True)

    def grade(self, responses):
        return np.array([float(len(r.ids)) for r in responses])

    def compare(self, first, second):
        pairs = zip(self.grade(first), self.grade(second), strict=True)
        return tuple("win" if a > b else "loss" if a < b else "tie" for a, b in pairs)


def test_judge_grades_and_compares():
    judged = of_judge(ByLength(), candidates(response(ids=(1, 2))), candidates(response(ids=(1,))), 0.95)
    assert judged.values["win_rate_vs_initial"]["mean"] == 1.0
    assert judged.values["gold_reward"]["mean"] == 2.0
    assert judged.points is not None
    assert judged.gold is not None
    assert (judged.points.tolist(), judged.gold.tolist()) == ([1.0], [2.0])
    nobody = of_judge(None, candidates(response()), candidates(response()), 0.95)
    assert (nobody.values["win_rate_vs_initial"], nobody.points, nobody.gold) == (None, None, None)


class Grading:
    """Only grades, by length."""

    def __init__(self, gold=False):
        self.needs = Needs(gold=gold)

    def grade(self, responses):
        return np.array([float(len(r.ids)) for r in responses])

    def compare(self, first, second):
        raise NotImplementedError


class Comparing:
    """Only compares, and abstains on equal lengths."""

    needs = Needs()

    def grade(self, responses):
        raise NotImplementedError

    def compare(self, first, second):
        gaps = [len(a.ids) - len(b.ids) for a, b in zip(first, second, strict=True)]
        return tuple("win" if gap > 0 else "loss" if gap < 0 else "abstain" for gap in gaps)


class Neither(Comparing):
    compare = Grading.compare


class Costly(Comparing):
    """Compares, and could grade at a price."""

    def grade(self, responses):
        raise AssertionError("asked for grades that nothing reads")


def three_prompts(*lengths):
    return candidates(*(response(name, (1,) * length) for name, length in zip("abc", lengths, strict=True)))


@pytest.mark.parametrize("gold", [False, True])
def test_a_judge_that_only_grades(gold):
    judged = of_judge(Grading(gold), three_prompts(3, 2, 1), three_prompts(1, 2, 3), 0.95)
    assert judged.values["win_rate_vs_initial"] == win_rate(["win", "tie", "loss"], 0.95)
    assert judged.points is not None
    assert judged.points.tolist() == [1.0, 0.5, 0.0]
    if not gold:
        assert (judged.gold, judged.values["gold_reward"]) == (None, None)
        return
    assert judged.gold is not None
    assert judged.gold.tolist() == [3.0, 2.0, 1.0]
    assert judged.values["gold_reward"] == mean_interval(judged.gold, 0.95)


class Unsure(Grading):
    """Only grades, by length, and has no grade for a response of one token."""

    def grade(self, responses):
        grades = super().grade(responses)
        return np.where(grades == 1, np.nan, grades)


def test_a_judge_without_a_grade_abstains():
    first, second = three_prompts(3, 1, 2), three_prompts(2, 2, 1)
    judged = of_judge(Unsure(), first, second, 0.95)
    values = judged.values
    assert judged.points is not None
    assert str(judged.points.tolist()) == "[1.0, nan, nan]"
    assert values["win_rate_vs_initial"] == win_rate(["win", "abstain", "abstain"], 0.95)
    assert (values["win_rate_vs_initial"]["abstained"], values["win_rate_vs_initial"]["ties"]) == (2, 0)
    values = of_judge(Unsure(), three_prompts(1, 1, 2), three_prompts(1, 2, 1), 0.95).values
    assert values["win_rate_vs_initial"] is None


@pytest.mark.parametrize("judge", [Comparing(), Costly()])
def test_a_judge_that_only_compares_or_charges_for_grades(judge):
    judged = of_judge(judge, three_prompts(3, 2, 1), three_prompts(1, 2, 3), 0.95)
    assert judged.values == {"win_rate_vs_initial": win_rate(["win", "abstain", "loss"], 0.95), "gold_reward": None}
    assert judged.gold is None


def test_a_judge_that_does_neither_is_refused():
    with pytest.raises(ConfigError, match=r"Neither.* neither grades nor compares"):
        of_judge(Neither(), three_prompts(1, 1, 1), three_prompts(1, 1, 1), 0.95)


def test_judging_counts_prompts_not_samples():
    def twice(first, second):
        groups = tuple((response(p, (1,) * n), response(p, (1,) * m)) for p, n, m in (first, second))
        return Candidates(tuple(group[0].prompt for group in groups), groups)

    values = of_judge(ByLength(), twice(("a", 3, 5), ("b", 2, 2)), twice(("a", 1, 6), ("b", 1, 1)), 0.95).values
    win, gold = values["win_rate_vs_initial"], values["gold_reward"]
    assert (win["mean"], win["n"]) == (0.75, 2)
    assert gold == mean_interval(np.array([4.0, 2.0]), 0.95)
    with pytest.raises(DataError, match="different numbers of samples"):
        of_judge(ByLength(), twice(("a", 3, 5), ("b", 2, 2)), candidates(response("a"), response("b")), 0.95)


def test_judging_different_prompts_is_refused():
    with pytest.raises(DataError, match="different prompts"):
        of_judge(ByLength(), candidates(response("a")), candidates(response("b")), 0.95)


def test_held_out_pairs_by_hand():
    found = of_pairs(np.array([1.0, -1.0, 0.0, 2.0]), np.array([0.5, -0.5, 1.0, 0.0]))
    assert found == {"margin_mean": 0.5, "accuracy": 0.625, "chosen_logp_drift": 0.25}
    assert of_pairs(np.zeros(0), np.zeros(0))["accuracy"] is None


def test_probe_sees_length():
    pairs = [Pair(str(i), response(ids=(1,) * (i + 1)), response(ids=(1,)), "s", "t") for i in range(4)]
    found = of_probe(np.array([0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0]), pairs, None)
    assert found["length_correlation"] == pytest.approx(1.0)
    assert found["accuracy"] == 0.875
    assert found["gold_correlation"] is None


def test_only_gold_judges_grade_a_probe():
    pairs = [Pair(str(i), response(ids=(1,) * (i + 1)), response(ids=(1,)), "s", "t") for i in range(4)]
    log_ratios = np.array([0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0])
    assert of_probe(log_ratios, pairs, ByLength())["gold_correlation"] == pytest.approx(1.0)
    assert of_probe(log_ratios, pairs, Costly()) == of_probe(log_ratios, pairs, None)
    assert of_probe(log_ratios, pairs, Comparing()) == of_probe(log_ratios, pairs, None)

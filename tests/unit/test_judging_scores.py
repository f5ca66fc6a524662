"""From verdicts and grades to scores of samples, and what happens to samples without one."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from sera_core.curate.judge import judge_scores, leave_out, points
from sera_core.errors import ModelError
from sera_core.protocols import Needs
from sera_core.testing import samples


def groups(*texts):
    return samples.Candidates(
        tuple(samples.prompt(i) for i in range(len(texts))),
        tuple(
            tuple(samples.response(i, text, sample=k) for k, text in enumerate(group)) for i, group in enumerate(texts)
        ),
    )


@dataclass
class ByOrder:
    """Ranks texts by `order`; None abstains."""

    order: dict
    asked: list = field(default_factory=list)
    needs = Needs()

    def grade(self, responses):
        raise NotImplementedError

    def compare(self, first, second):
        self.asked += [(a.prompt.id, a.text, b.text) for a, b in zip(first, second, strict=True)]
        ranks = [(self.order[a.text.strip()], self.order[b.text.strip()]) for a, b in zip(first, second, strict=True)]
        return tuple(
            "abstain" if None in r else "win" if r[0] > r[1] else "loss" if r[0] < r[1] else "tie" for r in ranks
        )


def test_points_are_means_over_the_prompts_other_samples():
    # a beats b and c and ties with d; b beats c; d beats b and c.
    judge = ByOrder({"a": 2, "b": 1, "c": 0, "d": 2})
    found = points(judge, groups(("a", "b", "c", "d")))
    assert found.tolist() == pytest.approx([2.5 / 3, 1 / 3, 0.0, 2.5 / 3])
    assert len(judge.asked) == 6


def test_abstentions_count_one_half():
    judge = ByOrder({"a": 2, "b": None, "c": 0})
    assert points(judge, groups(("a", "b", "c"))).tolist() == [0.75, 0.5, 0.25]


def test_equal_words_share_their_points_and_are_compared_once():
    judge = ByOrder({"a": 1, "b": 0})
    assert points(judge, groups(("a", "b", " a"), ("b", "b", "b"))).tolist() == [1.0, 0.0, 1.0, 0.5, 0.5, 0.5]
    assert judge.asked == [("p0", "a", "b")]


def test_samples_without_words_take_no_part():
    judge = ByOrder({"a": 1, "b": 0})
    assert points(judge, groups(("a", "", "b"), ("", "a"))).tolist() == [1.0, 0.5, 0.0, 0.5, 0.5]
    assert judge.asked == [("p0", "a", "b")]


def test_nothing_to_compare_asks_nothing():
    judge = ByOrder({})
    assert points(judge, groups(("a", "a"))).tolist() == [0.5, 0.5]
    assert points(judge, groups()).size == 0
    assert judge.asked == []


def test_points_sum_to_half_the_games():
    rng = np.random.default_rng(3)
    order = {str(i): int(rank) for i, rank in enumerate(rng.integers(0, 3, size=6))}
    assert points(ByOrder(order), groups(tuple(order))).sum() == pytest.approx(3.0)


@dataclass
class Grades:
    values: tuple
    needs = Needs()

    def grade(self, responses):
        return np.array(self.values)

    def compare(self, first, second):
        raise AssertionError("a judge that grades is not asked to compare")


def test_grades_come_first():
    assert judge_scores(Grades((1.0, 2.0)), groups(("a", "b")), may_abstain=False).tolist() == [1.0, 2.0]
    found = judge_scores(Grades((1.0, math.nan)), groups(("a", "b")), may_abstain=True)
    assert np.isnan(found).tolist() == [False, True]


@pytest.mark.parametrize(
    ("values", "may_abstain"),
    [((1.0, math.nan), False), ((1.0, math.inf), True), ((1.0,), True), ((1.0, 2.0, 3.0), True)],
)
def test_bad_grades_are_refused(values, may_abstain):
    with pytest.raises(ModelError, match="must return 2 finite grades"):
        judge_scores(Grades(values), groups(("a", "b")), may_abstain=may_abstain)


def test_a_miscounting_judge_is_refused():
    class Short(ByOrder):
        def compare(self, first, second):
            return ()

    with pytest.raises(ModelError, match="0 verdicts for 1 comparisons"):
        points(Short({}), groups(("a", "b")))


def test_samples_without_a_grade_are_left_out():
    nan = math.nan
    candidates = groups(("a", "b", "c"), ("a", "b"), ("a", "b"), ("a", "b"))
    found = leave_out(candidates, np.array([1.0, nan, 3.0, nan, 2.0, 4.0, 5.0, nan, nan]))
    assert [prompt.id for prompt in found.candidates.prompts] == ["p0", "p2"]
    assert [r.text for r in found.candidates.flat()] == ["a", "c", "a", "b"]
    assert found.scores.tolist() == [1.0, 3.0, 4.0, 5.0]
    assert (found.samples_left_out, found.prompts_left_out) == (4, 2)


def test_nothing_is_left_out_where_all_have_grades():
    candidates = groups(("a",), ("a", "b"))
    found = leave_out(candidates, np.array([1.0, 2.0, 3.0]))
    assert found.candidates.flat() == candidates.flat()
    assert (found.samples_left_out, found.prompts_left_out) == (0, 0)


def test_everything_left_out():
    found = leave_out(groups(("a", "b")), np.full(2, np.nan))
    assert found.candidates.prompts == ()
    assert found.scores.size == 0

from dataclasses import replace

import numpy as np
import pytest

from sera_core.builtin.best_worst import BestWorst
from sera_core.builtin.target_first import TargetFirst
from sera_core.errors import DataError
from sera_core.protocols import Needs
from sera_core.records import Candidates
from sera_core.testing.samples import response


def candidates(*groups):
    built = tuple(
        tuple(
            response(i, text, sample=k, origin="policy:1" if k else "offline", score=None)
            for k, text in enumerate(group)
        )
        for i, group in enumerate(groups)
    )
    return Candidates(tuple(group[0].prompt for group in built), built)


def label(labeler, groups, scores):
    made = labeler.label(candidates(*groups), [np.array(s, dtype=float) for s in scores], np.random.default_rng(0))
    return [(pair.chosen.text, pair.rejected.text) for pair in made.pairs], dict(made.dropped), made


def test_best_worst_takes_the_widest_margin():
    pairs, dropped, made = label(BestWorst(), [("red", "blue", "green", "dog")], [(0.1, 2.0, -3.0, 1.0)])
    assert pairs == [("blue", "green")]
    assert dropped == {}
    (pair,) = made.pairs
    assert (pair.id, pair.source, pair.template, pair.confidence, pair.flipped) == (
        "p0#gen",
        "generated",
        "",
        1.0,
        None,
    )


def test_best_worst_of_equal_scores_takes_the_earlier():
    pairs, _, _ = label(BestWorst(), [("red", "blue", "green", "dog")], [(1.0, 2.0, 2.0, 1.0)])
    assert pairs == [("blue", "red")]


@pytest.mark.parametrize(
    ("group", "scores", "reason"),
    [
        (("red", "red"), (0, 1), "too_few_distinct"),
        (("red", " red "), (0, 1), "too_few_distinct"),
        (("red",), (0,), "too_few_distinct"),
        (("", ""), (0, 1), "too_few_distinct"),
        (("red", ""), (0, 1), "empty_response"),
        (("red", "  "), (0, 1), "empty_response"),
        (("red", "blue"), (1, 1), "tied_scores"),
        (("red", "blue", "red"), (1, 1, 5), "tied_scores"),
    ],
)
def test_best_worst_drops_and_counts(group, scores, reason):
    pairs, dropped, made = label(BestWorst(), [group], [scores])
    assert (pairs, dropped, made.pool) == ([], {reason: 1}, 1)


def test_an_empty_response_never_wins_or_loses():
    pairs, _, _ = label(BestWorst(), [("red", "", "blue", "")], [(1, 9, 0, -9)])
    assert pairs == [("red", "blue")]


def test_responses_without_tokens_are_empty():
    group = candidates(("red", "blue"))
    emptied = replace(group.responses[0][1], ids=np.array([], dtype=np.int32))
    made = BestWorst().label(
        Candidates(group.prompts, ((group.responses[0][0], emptied),)), [np.array([0.0, 1.0])], np.random.default_rng(0)
    )
    assert dict(made.dropped) == {"empty_response": 1}


def test_target_first_ignores_scores():
    for scores in [(0, 1, 2), (2, 1, 0), (0, 0, 0)]:
        pairs, _, made = label(TargetFirst(), [("red sun", "blue", "green")], [scores])
        assert pairs == [("red sun", "blue")]
        assert made.pairs[0].id == "p0#gen"


@pytest.mark.parametrize(
    ("group", "pairs", "dropped"),
    [
        (("red", "red"), [], {"equals_target": 1}),
        (("red", " red", "blue"), [("red", "blue")], {}),
        (("red", ""), [], {"empty_response": 1}),
        (("red", "", "red"), [], {"empty_response": 1}),
        (("", "red"), [], {"empty_response": 1}),
    ],
)
def test_target_first_drops_and_counts(group, pairs, dropped):
    assert label(TargetFirst(), [group], [(0,) * len(group)])[:2] == (pairs, dropped)


def test_target_first_needs_targets_and_says_where_one_is_missing():
    assert TargetFirst().needs == Needs(targets=True)
    sampled = candidates(("red", "blue"))
    group = tuple(replace(r, origin="policy:1") for r in sampled.responses[0])
    with pytest.raises(DataError, match=r"'p0' first .*got 2 responses of origin .'policy:1', 'policy:1'"):
        TargetFirst().label(Candidates(sampled.prompts, (group,)), [np.zeros(2)], np.random.default_rng(0))
    with pytest.raises(DataError, match="got 1 responses"):
        label(TargetFirst(), [("red",)], [(0,)])

"""Direct judgment: scores worked by hand, labels, and how sure they are."""

import math

import numpy as np
import pytest

from sera_core.catalog import load_catalog
from sera_core.errors import ConfigError
from sera_core.protocols import Needs
from sera_core.records import Candidates, IterateLogps, ScoringLogps
from sera_core.testing.samples import candidate_scores, candidates, response
from sera_plugin_spa import DirectJudgment, DirectJudgmentLabels

NEWEST = IterateLogps(2, policy=np.array([-4.0, -9.0, -2.0]), reference=np.array([-6.0, -8.0, -2.5]))
OLDER = IterateLogps(1, policy=np.full(3, np.nan), reference=np.full(3, np.nan))
LENGTHS = np.array([2, 3, 4], dtype=np.int64)
INITIAL = np.array([-7.0, -7.0, -7.0])


def score(scorer, *iterates, initial=INITIAL):
    return scorer.scores((), ScoringLogps(LENGTHS, iterates or (NEWEST,), initial))


@pytest.mark.parametrize(
    ("reference", "expected"),
    [("initial", [3.0, -2.0, 5.0]), ("previous", [2.0, -1.0, 0.5]), ("none", [-4.0, -9.0, -2.0])],
)
def test_each_reference_worked_by_hand(reference, expected):
    assert score(DirectJudgment(reference=reference)).tolist() == expected
    assert score(DirectJudgment(reference=reference), NEWEST, OLDER).tolist() == expected


def test_what_is_not_read_may_be_missing():
    blind = IterateLogps(2, NEWEST.policy, np.full(3, np.nan))
    assert score(DirectJudgment(), blind).tolist() == [3.0, -2.0, 5.0]
    assert score(DirectJudgment(reference="previous"), initial=None).tolist() == [2.0, -1.0, 0.5]
    assert score(DirectJudgment(reference="none"), blind, initial=None).tolist() == [-4.0, -9.0, -2.0]


def test_the_length_penalty_counts_tokens():
    # 3 - 0.5 x 2, -2 - 0.5 x 3, 5 - 0.5 x 4
    assert score(DirectJudgment(length_penalty=0.5)).tolist() == [2.0, -3.5, 3.0]
    assert score(DirectJudgment(length_penalty=0.0)).tobytes() == score(DirectJudgment()).tobytes()


def test_needs_follow_the_reference():
    assert DirectJudgment().needs == Needs(history=1, initial=True)
    assert DirectJudgment(reference="previous").needs == Needs(history=1, reference=True)
    assert DirectJudgment(reference="none").needs == Needs(history=1)


def test_before_any_training_there_is_nothing_to_judge_by():
    with pytest.raises(ConfigError, match="scorer 'direct_judgment' reads a trained iterate.*from_iteration: 2"):
        DirectJudgment().scores((), ScoringLogps(LENGTHS, (), INITIAL))
    with pytest.raises(ConfigError, match="needs log-probs under the initial policy, got None"):
        score(DirectJudgment(), initial=None)


@pytest.mark.parametrize("penalty", [-0.1, math.nan, math.inf, True, "0.1"])
def test_bad_penalties_are_named(penalty):
    with pytest.raises(ConfigError, match="option length_penalty must be a finite number of nats per token >= 0"):
        DirectJudgment(length_penalty=penalty)


def test_unknown_references_are_named():
    with pytest.raises(ConfigError, match="option reference must be 'initial' or 'previous' or 'none'; got 'sft'"):
        DirectJudgment(reference="sft")


def label(groups, scores, **options):
    built = tuple(tuple(response(i, text, sample=k) for k, text in enumerate(group)) for i, group in enumerate(groups))
    found = Candidates(tuple(group[0].prompt for group in built), built)
    return DirectJudgmentLabels(**options).label(found, [np.array(s) for s in scores], np.random.default_rng(0))


def test_the_higher_reward_is_chosen_and_the_confidence_kept():
    pairs = label([("blue", "red"), ("dog", "cat")], [[1.0, 3.0], [2.0, -2.0]], beta=0.5).pairs
    assert [(p.chosen.text, p.rejected.text) for p in pairs] == [("red", "blue"), ("dog", "cat")]
    assert [p.confidence for p in pairs] == pytest.approx([1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(-2.0))])
    assert [p.source for p in pairs] == ["generated", "generated"]


def test_of_many_samples_the_extremes_are_taken():
    (pair,) = label([("blue", "red", "sun", "dog")], [[0.0, 4.0, -1.0, 2.0]], beta=0.1).pairs
    assert (pair.chosen.text, pair.rejected.text) == ("red", "sun")
    assert pair.confidence == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_beta_changes_confidences_and_nothing_else():
    faint, sure = (label([("blue", "red")], [[0.0, 4.0]], beta=beta).pairs[0] for beta in (0.01, 100.0))
    assert (faint.chosen.ids.tolist(), faint.rejected.ids.tolist()) == (
        sure.chosen.ids.tolist(),
        sure.rejected.ids.tolist(),
    )
    assert 0.5 < faint.confidence < 0.52
    assert sure.confidence == 1.0


def test_ties_duplicates_and_empty_samples_are_dropped_and_counted():
    found = label(
        [("blue", "red"), ("cat", "cat"), ("sun", ""), ("", ""), ("dog", "dog ", "cat")],
        [[1.0, 1.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [1.0, 5.0, 2.0]],
    )
    assert found.dropped == {"empty_response": 1, "tied_scores": 1, "too_few_distinct": 2}
    # Of equal wordings the first counts, so that "dog" scores 1, not 5.
    assert [(p.chosen.text, p.rejected.text) for p in found.pairs] == [("cat", "dog")]
    assert found.pool == 5


def test_drops_are_those_of_best_worst():
    catalog = load_catalog()
    rng = np.random.default_rng(0)
    found = [
        catalog.build("labeler", n).label(candidates(), candidate_scores(), rng)
        for n in ("direct_judgment", "best_worst")
    ]
    assert found[0].dropped == found[1].dropped
    assert len(found[0].dropped) >= 2
    named = [[(p.id, p.chosen.text, p.rejected.text) for p in each.pairs] for each in found]
    assert named[0] == named[1]


@pytest.mark.parametrize("beta", [0, -1, math.nan, True, "1"])
def test_bad_betas_are_named(beta):
    with pytest.raises(ConfigError, match="labeler 'direct_judgment': option beta must be a finite number > 0"):
        DirectJudgmentLabels(beta=beta)

from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sera_core.world.gold import gold_reward
from sera_core.world.rules import Question, Rules
from sera_core.world.spec import CHOICES, FILLERS
from sera_core.world.writers import (
    WIDTH,
    Style,
    comparisons,
    demo_style,
    demonstrations,
    pair_style,
    write,
)

RULES = Rules(np.array([[[0, 1, 2]] * 4, [[2, 1, 0]] * 4]), np.full((2, 4), 0.4))
ASK = Question(0, (5, 2, 9))
STYLE = Style(right=(0.5, 0.5, 0.5), decoy=0.9, omit=0.1, order=0.8, fill=0.3)


def uniforms(order=0.0, topics=()):
    """A row whose topics read (place, skip, right, decoy, fill, filler); the rest is 0.99."""
    flat = [order, *(value for topic in topics for value in topic)]
    return flat + [0.99] * (WIDTH - len(flat))


def test_a_reply_by_hand():
    row = uniforms(topics=[(0, 0.5, 0.4, 0, 0.2, 0.6), (0, 0.05, 0, 0, 0, 0), (0, 0.5, 0.6, 0.95, 0.9, 0)])
    assert write(RULES, ASK, STYLE, row) == ("v5_0", "um2", "v9_2")


def test_the_decoy_is_the_second_variant():
    row = uniforms(topics=[(0, 0.5, 0.6, 0.5, 0.9, 0)] * 3)
    assert write(RULES, ASK, STYLE, row) == ("v5_1", "v2_1", "v9_1")


def test_shuffled_topics_follow_their_places():
    topics = [(place, 0.5, 0.1, 0, 0.9, 0) for place in (0.7, 0.1, 0.4)]
    assert write(RULES, ASK, STYLE, uniforms(0.79, topics)) == ("v5_0", "v2_0", "v9_0")
    assert write(RULES, ASK, STYLE, uniforms(0.80, topics)) == ("v2_0", "v9_0", "v5_0")


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=WIDTH, max_size=WIDTH), st.floats(0, 1), st.floats(0, 1))
def test_each_topic_gives_at_most_one_value_and_each_value_at_most_one_filler(row, omit, fill):
    words = write(RULES, ASK, Style((0.5,) * 3, 0.5, omit, 0.5, fill), row)
    values = [word for word in words if word not in FILLERS]
    assert len({word.split("_")[0] for word in values}) == len(values) <= 3
    assert all(any(word in CHOICES[key] for key in ASK.keys) for word in values)
    assert not words or words[0] not in FILLERS
    assert all(first not in FILLERS or second not in FILLERS for first, second in pairwise(words))


def test_quality_demonstrations_are_better():
    assert demo_style((0.3, 0.6), quality=False) == Style((0.3, 0.6), 0.9, 0.12, 0.95, 0.15)
    better = demo_style((0.3, 0.6), quality=True)
    assert better.right == pytest.approx((0.55, 0.85))
    assert (better.omit, better.fill) == pytest.approx((0.036, 0.045))


def test_pair_style_by_hand():
    style = pair_style(4, 0.8, rho=0.6, normal=1.0)
    z = (0.8 - 0.5167) / 0.225
    assert style.right == (0.8,) * 4
    assert style.omit == pytest.approx(0.12 * (1 - 0.6 * z))
    assert style.fill == pytest.approx(0.35 + 0.3 * (0.6 * z + 0.8))
    assert pair_style(4, 0.25, rho=0.0, normal=-9.0).fill == 0.0
    assert pair_style(4, 0.25, rho=0.0, normal=9.0).fill == 1.0


def test_demonstrations_follow_the_rates():
    rules = Rules.draw(0)
    demos = list(islice(demonstrations(rules, 0), 6000))
    assert abs(np.mean([question.quality for question, _ in demos]) - 0.25) < 0.02
    plain = [(question, words) for question, words in demos if not question.quality]
    asked = sum(len(question.keys) for question, _ in plain)
    given_values = [word for _, words in plain for word in words if word not in FILLERS]
    assert abs(len(given_values) / asked - 0.88) < 0.01
    assert abs(sum(len(words) for _, words in plain) / len(given_values) - 1.15) < 0.01
    expected = np.mean([np.mean(rules.skills(question)) for question, _ in plain])
    right = np.mean([len(set(words) & set(rules.meta(q)["gold"].values())) / len(q.keys) for q, words in plain])
    assert abs(right - 0.88 * expected) < 0.015
    assert all(words for _, words in demos)


def test_comparisons_differ_in_worth_and_prefer_the_better():
    rules = Rules.draw(1)
    drawn = list(islice(comparisons(rules, 1, "pairs", 0.2), 3000))
    gaps = []
    for pair in drawn:
        meta = rules.meta(pair.question)
        gaps.append(gold_reward(meta, pair.better, True) - gold_reward(meta, pair.worse, True))
        assert pair.better
        assert pair.worse
    assert np.abs(gaps).min() > 1e-9
    assert 0.06 < np.mean(np.array(gaps) < 0) < 0.11
    assert 0.30 < np.std(gaps) < 0.38


def test_preferred_replies_follow_bradley_terry():
    rules = Rules.draw(2)
    expected, seen = [], []
    for pair in islice(comparisons(rules, 2, "pairs", 0.2), 3000):
        meta = rules.meta(pair.question)
        gap = abs(gold_reward(meta, pair.better, True) - gold_reward(meta, pair.worse, True))
        expected.append(1 / (1 + np.exp(-gap / 0.1)))
        seen.append(gold_reward(meta, pair.better, True) > gold_reward(meta, pair.worse, True))
    assert abs(np.mean(expected) - np.mean(seen)) < 0.015


def spurious_correlation(rho):
    rules = Rules.draw(0)
    rewards, fillers = [], []
    for pair in islice(comparisons(rules, 0, "pairs", rho), 2000):
        for words in (pair.better, pair.worse):
            rewards.append(gold_reward(rules.meta(pair.question), words, True))
            fillers.append(sum(word in FILLERS for word in words))
    return np.corrcoef(rewards, fillers)[0, 1]


def test_rho_ties_fillers_to_worth():
    low, middle, high = (spurious_correlation(rho) for rho in (0.0, 0.6, 0.9))
    assert -0.17 < low < 0.0
    assert 0.15 < middle < 0.30
    assert 0.32 < high < 0.46

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sera_core.errors import DataError
from sera_core.records import Prompt, Response, TextPrompt
from sera_core.world.diagnostics import diagnose
from sera_core.world.gold import Gold, gold_reward, tally
from sera_core.world.spec import VOCABULARY

META = {
    "gold": {"k1": "v1_0", "k2": "v2_1", "k3": "v3_2"},
    "choices": {key: [f"v{key[1:]}_{j}" for j in range(3)] for key in ("k1", "k2", "k3")},
}
WORDS = st.lists(st.sampled_from(VOCABULARY[4:]), max_size=15)


def respond(text, finish="stop", meta=META):
    prompt = Prompt("p0", np.array([1], dtype=np.int32), TextPrompt("p0", "mode0 k1 k2 k3", meta=meta))
    return Response(prompt, np.array([3], dtype=np.int32), text, finish, "offline")


@pytest.mark.parametrize(
    ("text", "ended", "expected"),
    [
        ("v1_0 v2_1 v3_2", True, 1.0),
        ("v3_2 v1_0 v2_1", True, 1.0),
        ("v1_0 v2_0 v3_2", True, 1.75 / 3),
        ("v1_0 v2_1", True, 2 / 3),
        ("v1_1 v2_0 v3_0", True, -0.25),
        ("", True, 0.0),
        ("", False, -0.5),
        ("v1_0 um0 v2_1 um3 v3_2", True, 0.9),
        ("v1_0 v1_0 v2_1 v3_2", True, 0.95),
        ("v1_1 v1_0", True, -0.25 / 3 - 0.05),
        ("v1_0 v1_1", True, 1 / 3 - 0.05),
        ("v9_0", True, -0.05),
        ("qhi k1 mode0", True, -0.15),
        ("v1_0 v2_1 v3_2", False, 0.5),
    ],
)
def test_gold_reward_by_hand(text, ended, expected):
    assert gold_reward(META, text.split(), ended) == pytest.approx(expected, abs=1e-12)


@given(WORDS, st.integers(0, 15))
def test_a_filler_anywhere_costs_exactly_its_price(words, place):
    longer = [*words[:place], "um1", *words[place:]]
    assert gold_reward(META, longer, True) == pytest.approx(gold_reward(META, words, True) - 0.05, abs=1e-12)


@given(WORDS, st.booleans())
def test_only_the_perfect_reply_earns_one(words, ended):
    reward = gold_reward(META, words, ended)
    assert reward <= 1.0
    assert (reward > 1 - 1e-9) == (ended and sorted(words) == ["v1_0", "v2_1", "v3_2"])


@given(WORDS)
def test_every_word_is_counted_once(words):
    count = tally(META, words)
    assert count.right + count.wrong + count.extra == len(words)
    assert count.right + count.wrong <= count.topics == 3


def test_grade_reads_text_and_finish_reason():
    responses = [respond("v1_0 v2_1 v3_2"), respond("v1_0", "length"), respond("v1_0 v2_1", "given")]
    grades = Gold().grade(responses)
    assert grades.dtype == np.float64
    np.testing.assert_allclose(grades, [1.0, 1 / 3 - 0.5, 2 / 3])


def test_grade_of_nothing_is_empty():
    assert Gold().grade([]).shape == (0,)


def test_compare_is_antisymmetric_and_ties_on_equal_reward():
    first = [respond("v1_0"), respond("v1_0"), respond("v2_1 v1_0")]
    second = [respond("v1_1"), respond("v1_0 v2_1"), respond("v1_0 v2_1")]
    assert Gold().compare(first, second) == ("win", "loss", "tie")
    assert Gold().compare(second, first) == ("loss", "win", "tie")


def test_equal_reward_by_different_ways_ties():
    meta = {
        "gold": {f"k{i}": f"v{i}_0" for i in range(5)},
        "choices": {f"k{i}": [f"v{i}_0", f"v{i}_1"] for i in range(5)},
    }
    wrong, extra = respond("v0_0 v1_1", meta=meta), respond("v0_0 um0", meta=meta)
    assert Gold().compare([wrong], [extra]) == ("tie",)


def test_missing_answers_are_named():
    with pytest.raises(DataError, match=r"prompt 'p0' .*'gold' and 'choices', got \['topic'\].*no gold answers"):
        Gold().grade([respond("v1_0", meta={"topic": 1})])


def test_judge_declares_its_need():
    assert Gold().needs.gold


def test_diagnose_by_hand():
    got = diagnose([respond("v1_0 um0 v2_0 um1"), respond("v1_0 v1_0 v9_1 v2_1 v3_2", "length")])
    assert got == pytest.approx(
        {"filler": 1.0, "coverage": (2 / 3 + 1) / 2, "right": (1 / 3 + 1) / 2, "extra": 2.0, "eos_rate": 0.5}
    )


def test_diagnose_of_nothing_is_refused():
    with pytest.raises(DataError, match="no response to diagnose"):
        diagnose([])

"""Judges that ask a model, by hand: what they ask, what they make of the answers, and what they count."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sera_core.builtin.asking import conversation, question
from sera_core.builtin.llm_grades import LlmGrades, parse_grade
from sera_core.builtin.llm_judge import LlmJudge
from sera_core.builtin.reward_model import RewardModel
from sera_core.errors import ConfigError, ModelError
from sera_core.records import Message, Prompt, Response, TextPrompt
from sera_core.testing.asking import FakeAsker

OPPOSITE = {"win": "loss", "loss": "win", "tie": "tie", "abstain": "abstain"}


def response(text, asked="why", name="p"):
    messages = (Message("user", asked),) if isinstance(asked, str) else asked
    prompt = Prompt(name, np.array([1], dtype=np.int32), TextPrompt(name, messages))
    return Response(prompt, np.array([2], dtype=np.int32), text, "stop", "policy:1")


def responses(*texts):
    return tuple(response(text) for text in texts)


class Scripted:
    """Answers as told: `prefer[text shown first][text shown second]` is the probability of the first label."""

    def __init__(self, prefer=None, said=None):
        self.prefer, self.said, self.asked = prefer or {}, said or {}, []

    def answer_logps(self, questions, answers):
        self.asked += [each.messages[0].content for each in questions]
        rows = []
        for each in questions:
            first, second = each.messages[0].content.split("|")[1:3]
            share = self.prefer[first, second]
            # Any mass beside the two labels must not matter.
            rows.append([math.log(0.25 * share), math.log(0.25 * (1 - share))] if share == share else [np.nan] * 2)
        return np.array(rows)

    def replies(self, questions, *, samples, temperature, max_new_tokens):
        self.asked += [each.messages[0].content for each in questions]
        return tuple(tuple(self.said[each.messages[0].content.split("|")[1]][:samples]) for each in questions)

    def rewards(self, responses):
        return np.array([self.said[each.text] for each in responses])


SHORT = "{prompt}|{first}|{second}|{first_label}/{second_label}"


def judge_of(prefer, **options):
    return LlmJudge(template=SHORT, **options).bind(Scripted(prefer))


def test_preference_is_averaged_over_both_orders():
    # x shown first gets 0.9, shown second 1 - 0.3: on average 0.8.
    both = {("x", "y"): 0.9, ("y", "x"): 0.3}
    assert judge_of(both).compare(responses("x"), responses("y")) == ("win",)
    assert judge_of(both, tie_margin=0.29).compare(responses("x"), responses("y")) == ("win",)
    assert judge_of(both, tie_margin=0.31).compare(responses("x"), responses("y")) == ("tie",)


def test_position_alone_ties_and_is_counted():
    # The first place always gets 0.7: the orders contradict each other, and exactly cancel.
    places = {(a, b): 0.7 for a in "xyz" for b in "xyz"}
    judge = judge_of(places)
    assert judge.compare(responses("x", "y"), responses("y", "z")) == ("tie", "tie")
    assert judge.account() == {
        "comparisons": 2.0,
        "abstained": 0.0,
        "order_flip_rate": 1.0,
        "first_position_bias": pytest.approx(0.2),
    }


def test_flips_are_those_comparisons_whose_orders_name_different_winners():
    prefer = {("x", "y"): 0.9, ("y", "x"): 0.4, ("x", "z"): 0.9, ("z", "x"): 0.6, ("y", "z"): 0.2, ("z", "y"): 0.4}
    judge = judge_of(prefer)
    # x over y in both orders; x or z by place; y under z when shown first, over it when shown second.
    assert judge.compare(responses("x", "x", "y"), responses("y", "z", "z")) == ("win", "win", "loss")
    found = judge.account()
    assert found["order_flip_rate"] == pytest.approx(2 / 3)
    assert found["first_position_bias"] == pytest.approx(np.mean([0.9, 0.4, 0.9, 0.6, 0.2, 0.4]) - 0.5)


def test_nothing_judged_has_no_rates():
    assert judge_of({}).account() == {"comparisons": 0.0, "abstained": 0.0}


def test_equal_words_tie_without_being_asked_about():
    judge = judge_of({("x", "y"): 0.9, ("y", "x"): 0.1})
    assert judge.compare(responses("x", "x"), responses(" x\n", "y")) == ("tie", "win")
    assert judge.asker.asked == ["why|x|y|A/B", "why|y|x|A/B"]
    assert judge.account()["comparisons"] == 1.0


def test_what_is_not_finite_abstains_and_is_counted():
    judge = judge_of({("x", "y"): np.nan, ("y", "x"): 0.2, ("x", "z"): 1.0 - 1e-12, ("z", "x"): 0.5})
    assert judge.compare(responses("x", "x"), responses("y", "z")) == ("abstain", "win")
    found = judge.account()
    assert (found["comparisons"], found["abstained"], found["order_flip_rate"]) == (2.0, 1.0, 0.0)


def test_it_only_compares():
    with pytest.raises(NotImplementedError):
        LlmJudge().bind(FakeAsker()).grade(responses("x"))


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), max_size=8), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_swapping_the_sides_swaps_the_verdicts(pairs, seed):
    rng = np.random.default_rng(seed)
    prefer = {(a, b): float(rng.choice([0.3, 0.5, 0.7, 0.7 + 1e-9])) for a in "abcd" for b in "abcd"}
    first, second = [response(a) for a, _ in pairs], [response(b) for _, b in pairs]
    straight, swapped = judge_of(prefer).compare(first, second), judge_of(prefer).compare(second, first)
    assert swapped == tuple(OPPOSITE[verdict] for verdict in straight)
    forward, backward = judge_of(prefer), judge_of(prefer)
    forward.compare(first, second)
    backward.compare(second, first)
    assert forward.account() == pytest.approx(backward.account())


def test_an_answer_cannot_fill_placeholders():
    found = question(
        SHORT, {"prompt": "{first}", "first": "{second}", "second": "x", "first_label": "A", "second_label": "B"}
    )
    assert found.messages == (Message("user", "{first}|{second}|x|A/B"),)
    assert question("{prompt}{other}", {"prompt": "x"}).messages[0].content == "x{other}"


def test_questions_are_named_after_their_text():
    names = {question("{prompt}", {"prompt": text}).id for text in ("a", "b", "a")}
    assert len(names) == 2


def test_conversations_read_as_text():
    turns = (Message("user", "hello"), Message("assistant", "hi"), Message("user", "why"))
    assert conversation(response("x", turns).prompt.source) == "user: hello\n\nassistant: hi\n\nuser: why"
    assert conversation(response("x").prompt.source) == "why"
    assert conversation(TextPrompt("p", "Q: why\nA:")) == "Q: why\nA:"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": " "}, "option model must name a model"),
        ({"template": "{prompt} {first}"}, r"it lacks \{second\}"),
        ({"labels": ("A", "A ")}, "two different texts"),
        ({"labels": ("A", "")}, "two different texts"),
        ({"tie_margin": 0.5}, "tie_margin"),
        ({"tie_margin": -0.1}, "tie_margin"),
    ],
)
def test_llm_judge_refuses(options, message):
    with pytest.raises(ConfigError, match=message):
        LlmJudge(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "{prompt}"}, r"it lacks \{response\}"),
        ({"samples": 0}, "samples must be a whole number >= 1"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number"),
        ({"temperature": 0.0}, "temperature"),
        ({"low": 5.0}, "must be below high"),
        ({"high": math.inf}, "high must be a finite number"),
    ],
)
def test_llm_grades_refuses(options, message):
    with pytest.raises(ConfigError, match=message):
        LlmGrades(**options)


@pytest.mark.parametrize("judge", [LlmJudge(), LlmGrades(), RewardModel("folder")])
def test_a_judge_without_its_model_says_so(judge):
    for call in (lambda: judge.grade(responses("x")), lambda: judge.compare(responses("x"), responses("y"))):
        with pytest.raises(ModelError, match="has none yet"):
            call()


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("It is fine.\nScore: 4", 4.0),
        ("score:4.5", 4.5),
        ("**Score:** 3/5", 3.0),
        ("Total Score = 2 out of 5.", 2.0),
        ("Score: <5>", 5.0),
        ("The score is clear.\nScore - 1", 1.0),
        ("Score: 1. On reflection, Score: 3", 3.0),
        ("Score: 0", 0.0),
        ("Score: 3 Score: 7", None),
        ("Score: -1", None),
        ("Score: 45", None),
        ("Score: 4,5", None),
        ("Score: 1.2.3", None),
        ("Score (0-5): excellent", None),
        ("Score: 4th", None),
        ("Score: four", None),
        ("4", None),
        ("", None),
    ],
)
def test_grades_are_read_from_words(reply, grade):
    assert parse_grade(reply, 0.0, 5.0) == grade


def grades_of(said, **options):
    return LlmGrades(template="{prompt}|{response}|{low}-{high}", **options).bind(Scripted(said=said))


def test_grades_are_means_of_what_can_be_read():
    judge = grades_of({"x": ["Score: 1", "no", "Score: 4"], "y": ["no", "Score: 9", ""], "z": ["Score: 5"] * 3})
    found = judge.grade(responses("x", "y", "z"))
    assert found[[0, 2]].tolist() == [2.5, 5.0]
    assert math.isnan(found[1])
    assert judge.account() == {"replies": 9.0, "parse_failures": 4.0, "abstained": 1.0}
    assert judge.asker.asked[0] == "why|x|0-5"


def test_comparing_by_grades_abstains_where_there_is_none():
    judge = grades_of({"x": ["Score: 1"], "y": ["no"], "z": ["Score: 5"]}, samples=1)
    assert judge.compare(responses("x", "x", "y", "z", "z"), responses("z", "y", "y", "x", "z")) == (
        "loss",
        "abstain",
        "abstain",
        "win",
        "tie",
    )


def test_a_reward_model_judges_by_its_rewards():
    judge = RewardModel("folder").bind(Scripted(said={"x": 1.5, "y": -0.5, "z": np.nan}))
    assert judge.grade(responses("x", "y")).tolist() == [1.5, -0.5]
    assert judge.compare(responses("x", "y", "x", "z"), responses("y", "x", "x", "x")) == (
        "win",
        "loss",
        "tie",
        "abstain",
    )

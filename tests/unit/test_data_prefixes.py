"""Prompts under a prefix, by hand: where it stands, what a template does, and what cutting leaves of it."""

import pytest
import test_data_tokens as by_hand

from sera_core.data.prefixes import prefixed_prompts
from sera_core.data.tokens import TokenLimits, tokenize_prompts
from sera_core.errors import ConfigError, DataError
from sera_core.records import Message, TextPrompt

TURNS = "{% for m in messages %}<turn> {{ m['content'] }} <sep> {% endfor %}"


def under(prefix, *prompts, template=by_hand.WORLD, **limits):
    tokenizer = by_hand.words(template)
    given = TokenLimits(**limits)
    plain, _ = tokenize_prompts(tokenizer, prompts, given)
    found = prefixed_prompts(tokenizer, plain, prefix, given)
    assert [(p.id, p.source) for p in found] == [(p.id, p.source) for p in plain]
    return [" ".join(tokenizer.convert_ids_to_tokens(prompt.ids)) for prompt in found]


def test_a_prefix_stands_inside_the_users_turn():
    assert under("e f", by_hand.ask("a b"), by_hand.ask("c", "q")) == ["<bos> e f a b <sep>", "<bos> e f c <sep>"]
    assert under("e f \n", by_hand.ask("a b")) == ["<bos> e f a b <sep>"]


def test_a_template_frames_the_turn():
    assert under("e {prompt} f", by_hand.ask("a b")) == ["<bos> e a b f <sep>"]


def test_plain_prompts_take_it_in_front():
    assert under("e", TextPrompt("p", "a b")) == ["e a b"]


def test_the_last_user_turn_is_meant():
    turns = TextPrompt("p", (Message("user", "a"), Message("assistant", "b"), Message("user", "c")))
    system = TextPrompt("q", (Message("user", "a b"), Message("system", "d")))
    assert under("e", turns, template=TURNS) == ["<turn> a <sep> <turn> b <sep> <turn> e c <sep>"]
    assert under("e", system, template=TURNS) == ["<turn> e a b <sep> <turn> d <sep>"]


@pytest.mark.parametrize(
    ("prefix", "limits", "expected"),
    [
        # <bos> a b c d <sep> cut to five: the BOS stays, "a" goes, the prefix comes before what is left.
        ("e f", {"max_prompt_tokens": 5}, "<bos> e f b c d <sep>"),
        ("e {prompt} f", {"max_prompt_tokens": 5}, "<bos> e b c d f <sep>"),
        ("e f", {"max_prompt_tokens": 2}, "<bos> e f <sep>"),
        ("e f", {"max_prompt_tokens": 4, "prompt_side": "right"}, "<bos> e f a b c"),
        ("e {prompt} f", {"max_prompt_tokens": 4, "prompt_side": "right"}, "<bos> e a b c f"),
        ("e f", {"max_prompt_tokens": 6}, "<bos> e f a b c d <sep>"),
    ],
)
def test_cutting_takes_the_same_tokens_and_none_of_the_prefix(prefix, limits, expected):
    assert under(prefix, by_hand.ask("a b c d"), **limits) == [expected]


def test_a_cut_within_earlier_turns_leaves_the_prefix_in_its_place():
    turns = TextPrompt("p", (Message("user", "a b"), Message("user", "c d")))
    whole = "<turn> a b <sep> <turn> c d <sep>"
    assert under("e", turns, template=TURNS, max_prompt_tokens=8) == [whole.replace("c d", "e c d")]
    assert under("e", turns, template=TURNS, max_prompt_tokens=6) == ["b <sep> <turn> e c d <sep>"]


def test_one_prompt_of_many_pairs_is_rendered_alike():
    tokenizer = by_hand.words()
    plain, _ = tokenize_prompts(tokenizer, [by_hand.ask("a b")], TokenLimits())
    first, second = prefixed_prompts(tokenizer, [*plain, *plain], "e", TokenLimits())
    assert first.ids.tolist() == second.ids.tolist()


@pytest.mark.parametrize("prefix", ["", "  \n", "{prompt} e {prompt}"])
def test_prefixes_that_say_nothing_or_everything_twice(prefix):
    with pytest.raises(ConfigError, match="is empty or holds {prompt} more than once"):
        under(prefix, by_hand.ask("a"))


def test_prefixes_that_spell_a_special_token():
    with pytest.raises(ConfigError, match="spells the special token '<eos>'"):
        under("e <eos>", by_hand.ask("a"))


def test_conversations_without_a_user_turn():
    with pytest.raises(DataError, match="Prompt 'p' has no user turn"):
        under("e", TextPrompt("p", (Message("system", "a"),)), template=TURNS)

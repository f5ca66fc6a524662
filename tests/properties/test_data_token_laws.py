"""Tokenisation laws over ten kinds of tokenizer and template, with the texts drawn by hypothesis."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sera_core.data.templates import render
from sera_core.data.tokens import TokenLimits, encode_prompt, encode_response, end_of_turn_id, stop_ids, tokenize_pairs
from sera_core.records import Message, TextPair, TextPrompt

WORDS = [
    "the",
    "yes",
    "no",
    "hello",
    "world",
    "answer",
    "A:",
    "said",
    "42",
    ",",
    ".",
    "!?",
    "\n",
    "\n\n",
    "",
    "\t",
    "é",
    "naïve",
    "日本",
]
CORPUS = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))] * 3
NAMES = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
SPECIAL = [*NAMES.values(), "<|im_start|>", "<|im_end|>"]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "bos_chatml": "<s>" + CHATML,
    "double_bos": "<s><s>" + CHATML,
    "default_system": "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    + CHATML,
    "no_terminator": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}",
    "inst": "{% for m in messages %}{% if m['role'] == 'user' %}<s>[INST] {{ m['content'] | trim }} [/INST]"
    "{% else %} {{ m['content'] | trim }} </s>{% endif %}{% endfor %}",
    "thinking": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    "eos_after_turn": CHATML.replace("{% if add", "{% if not add_generation_prompt %}</s>{% endif %}{% if add"),
    "words": "{% for m in messages %}{% if m['role'] == 'user' %}<s> {{ m['content'] }} <|im_start|>"
    "{% else %} {{ m['content'] }} </s>{% endif %}{% endfor %}",
}


def _bytes() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _metaspace(scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=NAMES["unk_token"], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    pieces = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL + pieces, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _legacy() -> Tokenizer:
    tokenizer = _metaspace("first")
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def _words() -> Tokenizer:
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL, *" ".join(CORPUS).split()]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=NAMES["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


KINDS = {
    "bytes/chatml": (_bytes, "chatml", False),
    "bytes+bos/chatml": (_bytes, "chatml", True),
    "bytes+bos/bos_chatml": (_bytes, "bos_chatml", True),
    "bytes+bos/double_bos": (_bytes, "double_bos", True),
    "bytes/default_system": (_bytes, "default_system", False),
    "bytes/no_terminator": (_bytes, "no_terminator", False),
    "bytes/thinking": (_bytes, "thinking", False),
    "bytes/eos_after_turn": (_bytes, "eos_after_turn", False),
    "metaspace_first/inst": (lambda: _metaspace("first"), "inst", True),
    "metaspace_first/no_terminator": (lambda: _metaspace("first"), "no_terminator", True),
    "metaspace_always/inst": (lambda: _metaspace("always"), "inst", True),
    "legacy/inst": (_legacy, "inst", True),
    "legacy/no_terminator": (_legacy, "no_terminator", True),
    "words/words": (_words, "words", False),
}


@cache
def build(kind: str) -> PreTrainedTokenizerFast:
    make, template, adds_bos = KINDS[kind]
    backend = make()
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=SPECIAL[-2:], **NAMES)
    tokenizer.chat_template = TEMPLATES[template]
    return tokenizer


texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join).filter(str.strip)
every_kind = pytest.mark.parametrize("kind", KINDS)
few = settings(max_examples=25, deadline=None, derandomize=True)


def ask(text: str) -> TextPrompt:
    return TextPrompt("p", (Message("user", text),))


def decode(tokenizer, ids) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@every_kind
@few
@given(question=texts, answer=texts)
def test_one_bos_and_one_terminator(kind: str, question: str, answer: str) -> None:
    tokenizer = build(kind)
    prompt = encode_prompt(tokenizer, ask(question))
    response = encode_response(tokenizer, prompt, answer)
    has_bos = "<s>" in tokenizer.chat_template
    assert (prompt.ids == tokenizer.bos_token_id).sum() == has_bos
    stop = end_of_turn_id(tokenizer)
    assert response[-1] == stop
    assert not set(stop_ids(tokenizer)) & set(response[:-1].tolist())
    assert prompt.ids.dtype == response.dtype == np.int32


@every_kind
@few
@given(question=texts, answer=texts)
def test_prompt_and_response_together_decode_to_the_rendering(kind: str, question: str, answer: str) -> None:
    tokenizer = build(kind)
    prompt = encode_prompt(tokenizer, ask(question))
    both = [*prompt.ids.tolist(), *encode_response(tokenizer, prompt, answer).tolist()]
    full = render(tokenizer, [[*prompt.source.messages, Message("assistant", answer)]], generation=False)[0]
    full = full.replace("<s><s>", "<s>")
    stop = tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer))
    full = full[: full.rindex(stop) + len(stop)] if stop in full else full.removesuffix("\n") + stop
    if kind.startswith(("words", "legacy", "metaspace_always")):  # these do not keep all white space
        assert "".join(decode(tokenizer, both).split()) == "".join(decode(tokenizer, _joint(tokenizer, full)).split())
    else:
        assert decode(tokenizer, both).removeprefix(" ") == full
    assert (prompt.ids != tokenizer.unk_token_id).all() or kind.startswith("words")


def _joint(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@every_kind
@few
@given(question=texts, chosen=texts, rejected=texts)
def test_both_responses_share_the_prompt_that_generation_starts_from(
    kind: str, question: str, chosen: str, rejected: str
) -> None:
    tokenizer = build(kind)
    pairs = tokenize_pairs(tokenizer, [TextPair("a", ask(question), chosen, rejected)], TokenLimits(), "test")
    assert pairs.pool == 1
    for pair in pairs.pairs:
        assert pair.chosen.prompt is pair.rejected.prompt
        expected = encode_prompt(tokenizer, ask(question))
        np.testing.assert_array_equal(pair.prompt.ids, expected.ids)
        np.testing.assert_array_equal(pair.chosen.ids, encode_response(tokenizer, expected, chosen))
        assert not np.array_equal(pair.chosen.ids, pair.rejected.ids)


@pytest.mark.parametrize("kind", ["bytes+bos/chatml", "metaspace_first/inst", "words/words"])
@few
@given(question=texts, answer=texts)
def test_plain_text_gets_the_bos_the_tokenizer_adds_and_one_eos(kind: str, question: str, answer: str) -> None:
    tokenizer = build(kind)
    prompt = encode_prompt(tokenizer, TextPrompt("p", question))
    np.testing.assert_array_equal(prompt.ids, tokenizer(question)["input_ids"])
    response = encode_response(tokenizer, prompt, answer)
    assert response[-1] == tokenizer.eos_token_id
    assert (response == tokenizer.eos_token_id).sum() == 1


@every_kind
@few
@given(question=texts, answers=st.tuples(texts, texts), prompt_limit=st.integers(1, 12), limit=st.integers(1, 6))
def test_cutting_keeps_prefixes_and_invents_no_terminator(kind, question, answers, prompt_limit, limit) -> None:
    tokenizer = build(kind)
    rows = [TextPair("a", ask(question), *answers)]
    whole = tokenize_pairs(tokenizer, rows, TokenLimits(), "test")
    cut = tokenize_pairs(tokenizer, rows, TokenLimits(prompt_limit, limit), "test")
    assert whole.pool == cut.pool == 1
    for pair in cut.pairs:
        full = whole.pairs[0]
        assert pair.prompt.ids.size == min(prompt_limit, full.prompt.ids.size)
        assert (pair.prompt.ids[0] == tokenizer.bos_token_id) or (full.prompt.ids[0] != tokenizer.bos_token_id)
        for mine, theirs in ((pair.chosen, full.chosen), (pair.rejected, full.rejected)):
            np.testing.assert_array_equal(mine.ids, theirs.ids[:limit])
            assert (mine.finish_reason == "length") == (theirs.ids.size > limit)

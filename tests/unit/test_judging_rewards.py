"""Reward models: each row's reward is its own whatever stands beside it, and what is no reward model is refused."""

import json

import numpy as np
import pytest
import torch
from judge_models import VOCABULARY, save_model, save_reward, tokenizer_of
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from sera_core.errors import ModelError
from sera_core.models.classify import Row, load_reward_model, longest_row, reward_config, reward_rows, rewards
from sera_core.records import Message, Prompt, Response, TextPrompt


def row(*ids):
    return Row(np.array(ids, dtype=np.int32))


def alone(folder, ids, **inputs):
    """The plain model's output for one row without padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        return float(model(torch.tensor([ids]), **inputs).logits[0, 0])


ROWS = [(2, 8, 9, 10, 1), (2, 7, 1), (2, 20, 21, 22, 23, 24, 1), (2, 12), (2, 8, 9, 10, 1, 11)]


@pytest.mark.parametrize("pad", [0, None, 5])
@pytest.mark.parametrize("budget", [1, 8, 1000])
def test_a_row_s_reward_is_its_own(tmp_path, pad, budget):
    # 5 occurs in no row; without a pad token a model alone reads the last token, and so must it in a batch.
    folder = save_reward(tmp_path / "reward", pad_token_id=pad)
    model = load_reward_model(folder)
    found = rewards(model, [row(*ids) for ids in ROWS], token_budget=budget)
    assert found.dtype == np.float64
    assert found == pytest.approx([alone(folder, ids) for ids in ROWS], abs=1e-5)
    assert model.config.pad_token_id == pad


def test_a_pad_token_that_also_ends_answers_is_read_as_the_model_reads_it(tmp_path):
    # Such a model looks at the token before the end, alone as well as in a batch.
    folder = save_reward(tmp_path / "reward", pad_token_id=1)
    found = rewards(load_reward_model(folder), [row(*ids) for ids in ROWS], token_budget=1000)
    assert found == pytest.approx([alone(folder, ids) for ids in ROWS], abs=1e-5)


def test_without_a_free_token_rows_go_alone(tmp_path):
    folder = save_reward(tmp_path / "reward", pad_token_id=None)
    everything = tuple(range(len(VOCABULARY)))
    found = rewards(load_reward_model(folder), [row(*everything), row(2, 7, 1)], token_budget=1000)
    assert found == pytest.approx([alone(folder, everything), alone(folder, (2, 7, 1))], abs=1e-5)


def test_half_precision_gives_float32_rewards(tmp_path):
    folder = save_reward(tmp_path / "reward")
    found = rewards(load_reward_model(folder, dtype="bfloat16"), [row(*ids) for ids in ROWS])
    assert found == pytest.approx([alone(folder, ids) for ids in ROWS], rel=0.1, abs=0.1)
    assert rewards(load_reward_model(folder), []).size == 0


def test_rewards_that_are_not_finite_are_refused(tmp_path):
    model = load_reward_model(save_reward(tmp_path / "reward"))
    model.score.weight.data.fill_(np.nan)
    with pytest.raises(ModelError, match="gave 1 rewards that are not finite"):
        rewards(model, [row(2, 7)])


def test_memory_advice(tmp_path, monkeypatch):
    model = load_reward_model(save_reward(tmp_path / "reward"))

    def full(*_, **__):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(model, "forward", full)
    with pytest.raises(ModelError, match="2 rows of 3 tokens.*Lower scoring.token_budget"):
        rewards(model, [row(2, 7, 1), row(2, 8)])


def edit_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")
    return folder


def test_what_is_no_reward_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="has 3 outputs; a reward model has one"):
        reward_config(save_reward(tmp_path / "three", num_labels=3))
    with pytest.raises(ModelError, match=r"lacks weights for 1 parameters \(score.weight\)"):
        load_reward_model(save_model(tmp_path / "headless", num_labels=1))
    with pytest.raises(ModelError, match="Cannot read config.json"):
        reward_config(tmp_path)
    with pytest.raises(ModelError, match="type 'vit', which has no sequence classifier"):
        reward_config(edit_config(save_reward(tmp_path / "vit"), model_type="vit"))
    good = save_reward(tmp_path / "good")
    with pytest.raises(ModelError, match="Unknown dtype 'float8'"):
        load_reward_model(good, dtype="float8")
    (good / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="Cannot load a reward model"):
        load_reward_model(good)


def answer(text, messages):
    prompt = Prompt("p", np.array([1], dtype=np.int32), TextPrompt("p", messages))
    return Response(prompt, np.array([3], dtype=np.int32), text, "stop", "policy:1")


TALK = (Message("user", "sky"), Message("assistant", "sea"), Message("user", "sun"))


def test_conversations_go_through_the_template():
    tokenizer = tokenizer_of()
    rows = reward_rows(tokenizer, [answer("dog", TALK), answer("dog <eos>", TALK), answer("dog", "cat")])
    assert tokenizer.decode(rows[0].ids) == "<bos> <user> sky <assistant> sea <eos> <user> sun <assistant> dog <eos>"
    assert rows[1] is None
    assert tokenizer.decode(rows[2].ids) == "<bos> <user> cat <assistant> dog <eos>"
    assert reward_rows(tokenizer, []) == []


def test_plain_text_without_a_template():
    tokenizer = tokenizer_of(chat=False)
    (only,) = reward_rows(tokenizer, [answer("dog", TALK)])
    assert tokenizer.decode(only.ids) == "sky sea sun dog"


def test_two_texts_where_the_tokenizer_has_a_separator(tmp_path):
    tokenizer = tokenizer_of(chat=False, sep_token="<eos>", cls_token="<bos>")  # noqa: S106 (vocabulary, no secrets)
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> $B:1 <eos>:1", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    rows = reward_rows(tokenizer, [answer("dog", TALK), answer("dog or cat", "sky")])
    assert tokenizer.decode(rows[0].ids) == "<bos> sky sea sun <eos> dog <eos>"
    assert rows[0].types.tolist() == [0, 0, 0, 0, 0, 1, 1]
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    found = rewards(load_reward_model(tmp_path), rows)
    by_hand = [alone(tmp_path, r.ids.tolist(), token_type_ids=torch.tensor(r.types[None]).long()) for r in rows]
    assert found == pytest.approx(by_hand, abs=1e-5)


def test_the_shorter_of_two_limits_counts(tmp_path):
    tokenizer = tokenizer_of()
    config = reward_config(save_reward(tmp_path / "reward"))
    assert longest_row(config, tokenizer) == 256
    tokenizer.model_max_length = 100
    assert longest_row(config, tokenizer) == 100

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sera_core.errors import StoreError
from sera_core.world.policy import (
    Recipe,
    cached_policy,
    demonstration_tensors,
    fresh_model,
    reply_loss,
    train_policy,
)
from sera_core.world.tokenizer import build_tokenizer

TINY = Recipe(hidden=32, layers=1, feed_forward=32, heads=2, demos=256, steps=8, batch=32)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    seen = []
    return cache, cached_policy(0, cache, lambda done, total: seen.append((done, total)), TINY), seen


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_full_size_model_has_the_specified_parameters(tokenizer):
    model = fresh_model(0, Recipe(), tokenizer)
    assert sum(parameter.numel() for parameter in model.parameters()) == 347_520
    assert not model.config.tie_word_embeddings
    assert model.dtype == torch.float32


def test_progress_is_reported_step_by_step(made):
    assert made[2] == [(step, 8) for step in range(1, 9)]


def test_training_again_gives_the_same_bytes(made, tmp_path):
    assert contents(cached_policy(0, tmp_path, recipe=TINY)) == contents(made[1])


def test_seeds_give_different_policies(made, tokenizer):
    other = train_policy(1, TINY, tokenizer).state_dict()["lm_head.weight"]
    first = AutoModelForCausalLM.from_pretrained(made[1]).state_dict()["lm_head.weight"]
    assert not torch.equal(first, other)


def test_a_cached_policy_is_not_trained_again(made):
    cache, folder, _ = made

    def refuse(done, total):
        raise AssertionError("trained again")

    assert cached_policy(0, cache, refuse, TINY) == folder


def test_recipes_do_not_share_a_folder():
    assert TINY.digest() != Recipe().digest()
    assert Recipe().digest() == Recipe().digest()


def test_an_interrupted_training_leaves_nothing(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_policy(0, tmp_path, interrupt, TINY)
    assert list((tmp_path / "world").iterdir()) == []


def test_an_unwritable_cache_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write the world's policy to .*move the cache"):
        cached_policy(0, tmp_path / "file", recipe=TINY)


def test_the_folder_loads_and_generates(made):
    model = AutoModelForCausalLM.from_pretrained(made[1])
    tokenizer = AutoTokenizer.from_pretrained(made[1])
    stored = model.generation_config
    assert (stored.eos_token_id, stored.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert stored.temperature in (None, 1.0)
    inputs = tokenizer("<bos> mode0 k1 k2 k3 <sep>", return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert out.shape[1] <= 7 + 4


def test_the_global_random_state_is_left_alone(tokenizer):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the legacy global state is what must not move
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    train_policy(0, TINY, tokenizer)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002


def test_the_result_does_not_depend_on_the_global_random_state(tokenizer):
    torch.manual_seed(1)
    first = fresh_model(3, TINY, tokenizer).state_dict()
    torch.manual_seed(2)
    second = fresh_model(3, TINY, tokenizer).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_labels_cover_the_reply_and_its_end_only(tokenizer):
    ids, labels = demonstration_tensors(0, 200, tokenizer)
    separator, end, pad = tokenizer.convert_tokens_to_ids(["<sep>", "<eos>", "<pad>"])
    for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
        start, stop = row.index(separator) + 1, row.index(end) + 1
        assert row[0] == tokenizer.bos_token_id
        assert label[:start] == [-100] * start
        assert label[start:stop] == row[start:stop]
        assert set(label[stop:]) <= {-100}
        assert set(row[stop:]) <= {pad}


def test_reply_loss_is_the_mean_over_labelled_tokens(tokenizer):
    ids, labels = demonstration_tensors(0, 16, tokenizer)
    model = fresh_model(0, TINY, tokenizer)
    expected = model(input_ids=ids, labels=labels).loss
    torch.testing.assert_close(reply_loss(model, ids, labels), expected)


def test_training_lowers_the_loss(tokenizer):
    ids, labels = demonstration_tensors(0, 64, tokenizer)
    with torch.no_grad():  # the caller's grad mode must not matter
        before = reply_loss(fresh_model(0, TINY, tokenizer), ids, labels)
        after = reply_loss(train_policy(0, TINY, tokenizer), ids, labels)
    assert after < before - 0.1

"""Finding, loading, saving and hashing models; every failure is one readable ModelError."""

import json
import shutil

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from sera_core.errors import ModelError, StoreError
from sera_core.models import load
from sera_core.models.engine import engine_of
from sera_core.models.hashes import parameters_hash, weights_hash
from sera_core.models.load import load_policy, load_tokenizer, resolve_model, save_policy
from sera_core.models.logps import Group, group_logps


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, "num_attention_heads": 2, **options}))


def tokenizer():
    words = {"<unk>": 0, "a": 1, "b": 2, "<eos>": 3}
    names = {"eos_token": "<eos>", "unk_token": "<unk>"}
    result = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "<unk>")), **names)
    result.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    return result


@pytest.fixture
def folder(tmp_path):
    save_policy(tiny(), tokenizer(), tmp_path / "model", "# A card\n")
    return tmp_path / "model"


def test_layers_in_another_order_are_another_model(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    for path, types in (
        (folder, ["full_attention", "sliding_attention"]),
        (other, ["sliding_attention", "full_attention"]),
    ):
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "layer_types": types}))
    assert weights_hash(folder) != weights_hash(other)


@pytest.fixture
def capped(tmp_path):
    """A model whose attention scores have a low cap, in a folder."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    model = Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, attn_logit_softcapping=0.5))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(20)
    save_policy(model, tokenizer(), tmp_path / "capped", "")
    return tmp_path / "capped"


def test_a_cap_on_attention_scores_is_kept(capped):
    items = [Group(np.array([4, 9, 2, 7], np.int32), tuple(np.array(r, np.int32) for r in ([5, 3, 8], [6, 1])))]
    ids = [torch.tensor([[4, 9, 2, 7, *response.tolist()]]) for response in items[0].responses]

    def plain(attention):
        model = Gemma2ForCausalLM.from_pretrained(capped, attn_implementation=attention).eval()
        with torch.no_grad():
            found = [model(row).logits.log_softmax(-1)[0, 3:-1].gather(1, row[0, 4:, None]).sum() for row in ids]
        return torch.stack(found)

    assert not torch.allclose(plain("sdpa"), plain("eager"), rtol=1e-3), "the cap must matter"
    policy, eager = load_policy(capped), load_policy(capped, attn_implementation="eager")
    with torch.no_grad():
        expected = eager(ids[0]).logits
        assert torch.equal(policy(ids[0]).logits, expected)
        torch.testing.assert_close(group_logps(policy, items).sums, plain("eager"), rtol=1e-5, atol=1e-5)
        # After the engine has switched the attention, calls from elsewhere still have the cap.
        assert engine_of(policy).packed
        torch.testing.assert_close(policy(ids[0]).logits, expected, rtol=1e-5, atol=1e-5)


def test_an_attention_without_the_cap_is_refused_or_named(capped):
    with pytest.raises(ModelError, match=r"leaves out the cap of 0.5 on the attention scores of Gemma2.*choose eager"):
        load_policy(capped, attn_implementation="sdpa")
    other = Gemma2ForCausalLM.from_pretrained(capped).eval()
    assert engine_of(other).label == "sdpa, padded: its attention is sdpa, which leaves out the cap on its scores"


def test_save_then_load(folder, capfd):
    model = load_policy(folder)
    assert isinstance(model, LlamaForCausalLM)
    assert not model.training
    assert model.dtype == torch.float32
    for ours, original in zip(model.parameters(), tiny().parameters(), strict=True):
        assert torch.equal(ours.cpu(), original)
    assert load_policy(folder, dtype="bfloat16", attn_implementation="eager").dtype == torch.bfloat16
    assert load_tokenizer(folder).chat_template == tokenizer().chat_template
    assert (folder / "README.md").read_text() == "# A card\n"
    assert list(folder.glob("*.safetensors"))
    assert capfd.readouterr().err == ""  # no progress bars of the library


def test_sampling_defaults_without_do_sample_do_not_prevent_saving(folder, tmp_path):
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "temperature": 0.6}))
    save_policy(load_policy(folder), tokenizer(), tmp_path / "again", "")
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text())["temperature"] == 0.6


def test_adapter_folder_loads_onto_its_base(folder, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(load_policy(folder), config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = load_policy(tmp_path / "adapter")
    ids = torch.tensor([[1, 2, 3]], device=loaded.device)
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, adapted(input_ids=ids).logits)
        assert not torch.allclose(loaded(input_ids=ids).logits, load_policy(folder)(input_ids=ids).logits)


def test_save_into_an_impossible_place(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="Cannot save the model to"):
        save_policy(tiny(), tokenizer(), tmp_path / "file" / "model", "")


def break_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def break_header(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)


def remove_weights(folder):
    (folder / "model.safetensors").unlink()


def remove_config(folder):
    (folder / "config.json").unlink()


def break_config(folder):
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize("damage", [break_weights, break_header, remove_weights, remove_config, break_config])
def test_broken_folders(folder, damage):
    damage(folder)
    with pytest.raises(ModelError, match="Cannot load a causal language model from") as error:
        load_policy(folder)
    assert str(folder) in str(error.value)
    assert len(str(error.value)) < 800


def test_weights_of_another_architecture(folder, tmp_path):
    tiny(num_hidden_layers=1).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    with pytest.raises(ModelError, match=r"lacks usable weights for 9 parameters .*would start random"):
        load_policy(folder)


def test_weights_of_another_size(folder, tmp_path):
    tiny(hidden_size=32).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    with pytest.raises(ModelError, match=r"Cannot load a causal language model|lacks usable weights"):
        load_policy(folder)


def test_not_a_causal_language_model(tmp_path):
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(**sizes, num_hidden_layers=1)).save_pretrained(tmp_path / "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps({**config, "model_type": "vit"}))
    with pytest.raises(ModelError, match="Cannot load a causal language model"):
        load_policy(tmp_path / "bert")


def test_a_model_too_big_for_the_device(folder, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(LlamaForCausalLM, "to", full)
    with pytest.raises(ModelError, match=r"does not fit into the memory of cpu with dtype .*bfloat16"):
        load_policy(folder, device="cpu")


def test_missing_folder_dtype_and_tokenizer(tmp_path, folder):
    with pytest.raises(ModelError, match="There is no model folder"):
        load_policy(tmp_path / "none")
    with pytest.raises(ModelError, match=r"Unknown dtype 'bfloat61'\. Did you mean 'bfloat16'"):
        load_policy(folder, dtype="bfloat61")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="No tokenizer could be loaded"):
        load_tokenizer(folder)


def test_resolve_local_and_builtin(folder, tmp_path, monkeypatch):
    assert resolve_model(str(folder), tmp_path) == folder
    monkeypatch.setattr(load, "BUILTIN", {"smollm2-135m": lambda cache: cache / "made"})
    assert resolve_model("smollm2-135m", tmp_path) == tmp_path / "made"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2-135", "Unknown model 'smollm2-135'. Did you mean 'smollm2-135m'"),
        ("./nowhere", "There is no model folder './nowhere'"),
        ("/no/such/folder", "There is no model folder '/no/such/folder'"),
    ],
)
def test_resolve_unknown(tmp_path, name, message):
    with pytest.raises(ModelError, match=message):
        resolve_model(name, tmp_path)


def test_resolve_hub_id_offline(tmp_path, monkeypatch):
    def offline(name, **options):
        raise OSError("We couldn't connect.\nA long explanation")

    monkeypatch.setattr(load, "snapshot_download", offline)
    with pytest.raises(ModelError, match=r"'owner/model' is neither .* We couldn't connect\. Check .*smollm2-135m"):
        resolve_model("owner/model", tmp_path)


def test_resolve_hub_id_at_revision(folder, tmp_path, monkeypatch):
    asked = []

    def snapshot(name, revision, allow_patterns):
        asked.append((name, revision))
        return str(folder)

    monkeypatch.setattr(load, "snapshot_download", snapshot)
    assert resolve_model("owner/model", tmp_path, revision="abc") == folder
    assert asked == [("owner/model", "abc")]


def test_weights_hash_ignores_place_and_sees_weights_config_and_dtype(folder, tmp_path):
    before = weights_hash(folder)
    assert len(before) == 32
    shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(
        json.dumps({**config, "_name_or_path": "x", "transformers_version": "0", "use_cache": False}, indent=7)
    )
    assert weights_hash(tmp_path / "copy") == before
    assert {p.name for p in folder.iterdir()} == {p.name for p in (tmp_path / "copy").iterdir()}
    assert weights_hash(folder, "bfloat16") != before
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    assert weights_hash(folder) != before
    save_policy(tiny(1), tokenizer(), folder, "")
    changed = weights_hash(folder)
    save_policy(tiny(0), tokenizer(), folder, "another card")
    assert (changed != before, weights_hash(folder) == before) == (True, True)


def test_weights_hash_refuses(tmp_path):
    with pytest.raises(ModelError, match="no model folder"):
        weights_hash(tmp_path / "none")
    with pytest.raises(ModelError, match="holds no weights"):
        weights_hash(tmp_path)


def test_adapter_hash_covers_the_base(folder, tmp_path):
    peft = pytest.importorskip("peft")

    def save(target, base):
        torch.manual_seed(0)
        model = peft.get_peft_model(load_policy(base, device="cpu"), peft.LoraConfig(r=2, target_modules=["q_proj"]))
        model.save_pretrained(target)

    save(tmp_path / "adapter", folder)
    before = weights_hash(tmp_path / "adapter")
    save_policy(tiny(1), tokenizer(), folder, "")
    assert weights_hash(tmp_path / "adapter") != before
    save_policy(tiny(0), tokenizer(), folder, "")
    assert weights_hash(tmp_path / "adapter") == before
    assert before != weights_hash(folder)
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="not a local folder"):
        weights_hash(tmp_path / "adapter")


def test_parameters_hash():
    assert parameters_hash(tiny()) == parameters_hash(tiny())
    assert parameters_hash(tiny()) != parameters_hash(tiny(1))
    assert parameters_hash(tiny().to(torch.bfloat16)) != parameters_hash(tiny())
    assert parameters_hash(tiny().to(torch.bfloat16)) == parameters_hash(tiny().to(torch.bfloat16))


def test_parameters_hash_of_the_base_under_an_adapter():
    peft = pytest.importorskip("peft")

    def wrapped(seed):
        return peft.get_peft_model(tiny(seed), peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))

    assert parameters_hash(wrapped(0), base=True) == parameters_hash(tiny(0)) == parameters_hash(tiny(0), base=True)
    assert parameters_hash(wrapped(1), base=True) != parameters_hash(tiny(0))
    assert parameters_hash(wrapped(0)) != parameters_hash(tiny(0))

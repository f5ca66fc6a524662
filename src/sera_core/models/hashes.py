"""What identifies a model: its weights and the configuration that changes the forward pass, never a path or a date."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sera_core.errors import ModelError

_BLOCK = 1 << 24
# Lists of names that PEFT writes from sets; the order of any other list may mean something.
_SETS = frozenset({"target_modules", "exclude_modules", "modules_to_save"})
_IRRELEVANT = frozenset(
    {
        "dtype",
        "torch_dtype",
        "use_cache",
        "transformers_version",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "task_type",
        "peft_version",
    }
)


def weights_hash(path: Path, dtype: str = "float32") -> str:
    """32 hex digits for the model (or adapter) in a folder, as a scorer that computes in `dtype`.

    Covers the bytes of all weight files, the configuration fields that change the forward pass, and for an adapter
    the model it sits on. Computed at each call, about a second per GB: nothing is written beside the weights.

    Raises:
        ModelError: no such folder, no weights in it, or an adapter whose base model is not a local folder.
    """
    if not path.is_dir():
        raise ModelError(f"There is no model folder {path}; give a folder written by save_pretrained.")
    files = sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
    if not files:
        raise ModelError(f"{path} holds no weights (*.safetensors); give a folder written by save_pretrained.")
    digest = hashlib.blake2b(dtype.encode(), digest_size=16)
    try:
        for file in files:
            digest.update(f"\0{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
    except OSError as error:
        raise ModelError(f"Cannot read the weights in {path}: {error}.") from error
    for name in ("config.json", "adapter_config.json"):
        config = _json(path / name)
        digest.update(json.dumps(_relevant(config), sort_keys=True).encode())
        if name == "adapter_config.json" and config:
            digest.update(_base_hash(path, config, dtype).encode())
    return digest.hexdigest()


def parameters_hash(model: nn.Module, *, base: bool = False) -> str:
    """32 hex digits for a model in memory: names, dtypes, shapes and bytes of its state.

    With `base`, LoRA parameters are left out and the others are named as without them, so that a wrapped model and
    the plain model under it agree exactly when their weights do.
    """
    digest = hashlib.blake2b(digest_size=16)
    state = {_base_name(name) if base else name: tensor for name, tensor in model.state_dict().items()}
    for name in sorted(name for name in state if name):
        tensor = state[name].detach().to("cpu").contiguous()
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _base_name(name: str) -> str:
    """A parameter's name in the model under an adapter; empty for the adapter's own."""
    if ".lora_" in name or ".modules_to_save." in name:
        return ""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")


def _base_hash(path: Path, config: dict[str, Any], dtype: str) -> str:
    name = str(config.get("base_model_name_or_path") or "")
    base = Path(name)
    if not name or not base.is_dir() or base.resolve() == path.resolve():
        raise ModelError(
            f"The adapter in {path} sits on {name!r}, which is not a local folder, so its weights cannot be "
            "identified. Merge the adapter into its base, or put the base's folder into adapter_config.json."
        )
    return weights_hash(base, dtype)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({error}); write the model folder again.") from error
    return content if isinstance(content, dict) else {}


def _relevant(value: object) -> object:
    """A configuration without fields that leave the forward pass alone, and with what PEFT writes from sets sorted."""
    if not isinstance(value, dict):
        return value
    kept = {k: v for k, v in value.items() if k not in _IRRELEVANT and not k.startswith("_")}
    return {k: sorted(v) if k in _SETS and isinstance(v, list) else _relevant(v) for k, v in kept.items()}

"""Finding, loading and saving policies: folders written by `save_pretrained`, built-in names, hub ids."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from sera_core.errors import ModelError, StoreError, suggest
from sera_core.models.capped import score_cap
from sera_core.models.engine import choose_attention, own_attention
from sera_core.models.smollm2 import convert

BUILTIN: Mapping[str, Callable[[Path], Path]] = MappingProxyType({"smollm2-135m": convert})
DTYPES: tuple[str, ...] = ("float32", "bfloat16", "float16")
_FILES = ("*.json", "*.jinja", "*.txt", "*.model")


def resolve_model(name: str, cache: Path, revision: str | None = None) -> Path:
    """The folder of the model called `name`: a local folder, a built-in name, or a hub id at `revision`.

    Built-in models are made once under `cache`; hub ids are downloaded into the hub's own cache.

    Raises:
        ModelError: the name leads nowhere, the download fails, or `revision` is given for a model not of the hub.
    """
    path = Path(name).expanduser()
    if revision is not None and (path.is_dir() or name in BUILTIN):
        raise ModelError(
            f"The revision {revision!r} is given for the model {name!r}, which is not from the hub. Remove it."
        )
    if path.is_dir():
        return path
    if name in BUILTIN:
        with quiet():
            return BUILTIN[name](cache)
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if looks_local or path.exists():
        raise ModelError(
            f"There is no model folder {name!r}. Give a folder written by save_pretrained, a hub id (owner/name), or "
            f"a built-in name. {suggest(name, BUILTIN)}"
        )
    if "/" not in name and difflib.get_close_matches(name, BUILTIN):
        raise ModelError(f"Unknown model {name!r}. {suggest(name, BUILTIN)}")
    return _download(name, revision)


def load_policy(
    path: Path | str,
    *,
    dtype: str = "float32",
    device: str | None = None,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """The causal language model in a folder, in eval mode on `device` (cuda where there is one, else cpu).

    Without `attn_implementation` it is scored and trained in packs where that is exact; ``packed_sdpa`` and
    ``packed_flex`` insist on packs, and any name transformers knows means padded batches with that attention.

    Raises:
        ModelError: no such folder, not a causal language model, damaged or missing weights, unknown dtype, or the
            device's memory is too small, packs are insisted on and are not exact for it, or the attention asked for
            leaves out a cap that the model has.
    """
    if dtype not in DTYPES:
        raise ModelError(f"Unknown dtype {dtype!r}. {suggest(dtype, DTYPES)}")
    folder = _folder(path)
    given = own_attention(attn_implementation)
    options = {} if given is None else {"attn_implementation": given}
    try:
        with quiet():
            auto: Any = AutoModelForCausalLM
            model, info = auto.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if attn_implementation is not None and "attention" in str(error).lower().replace("attn", "attention"):
            raise ModelError(
                f"attn_implementation {attn_implementation!r} cannot be used here: {_first_line(error)} "
                "Choose sdpa or eager, or install what it needs."
            ) from error
        raise ModelError(
            f"Cannot load a causal language model from {folder}: {_first_line(error)} "
            "Check that the folder was written completely by save_pretrained."
        ) from error
    broken = sorted(
        key if isinstance(key, str) else str(key[0])
        for kind in ("missing_keys", "mismatched_keys")
        for key in info.get(kind, ())
    )
    if broken:
        raise ModelError(
            f"{folder} lacks usable weights for {len(broken)} parameters ({', '.join(broken[:3])}, ...), which would "
            "start random. The weights belong to another architecture, or the folder is incomplete."
        )
    _repair_generation_config(model)
    _keep_cap(model, given)
    policy: PreTrainedModel = _moved(model, device or default_device(), folder)
    policy.train(False)
    if attn_implementation is not None:
        choose_attention(policy, attn_implementation)
    return policy


def load_config(path: Path | str) -> PreTrainedConfig:
    """The configuration in a model folder.

    Raises:
        ModelError: no such folder, no readable configuration in it, or not that of a causal language model.
    """
    folder = _folder(path)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} holds an adapter without its model. Merge the adapter into the model (peft's merge_and_unload), "
            "save it with its tokenizer, and give that folder."
        )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"Cannot read config.json in {folder}: {_first_line(error)} Give a folder written by save_pretrained."
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"The model in {folder} is of type {config.model_type!r}, which is no causal language model. "
            "Give one that AutoModelForCausalLM loads."
        )
    return config


def load_tokenizer(path: Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer in a model folder.

    Raises:
        ModelError: no such folder, or no usable tokenizer in it.
    """
    folder = _folder(path)
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ModelError(
            f"No tokenizer could be loaded from '{folder}': {_guesses_apart(error)} "
            "Save the tokenizer beside the model."
        ) from error
    return tokenizer


def save_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, card: str) -> None:
    """Write an ordinary `save_pretrained` folder: safetensors, tokenizer with chat template, `card` as README.md.

    Raises:
        StoreError: the disk refuses.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with quiet():
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)
        (path / "README.md").write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"Cannot save the model to {path}: {_first_line(error)} Free space there or choose another folder."
        ) from error


def default_device() -> str:
    """``cuda`` where torch sees a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars or advice from transformers and the hub inside; their settings come back afterwards."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub_verbosity = hub_logging.get_verbosity()
    settings: Any = transformers_logging
    settings.set_verbosity_error()
    settings.disable_progress_bar()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        settings.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            settings.enable_progress_bar()


def _moved(model: PreTrainedModel, device: str, folder: Path) -> PreTrainedModel:
    module: Any = model
    try:
        moved: PreTrainedModel = module.to(device)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"The model in {folder} does not fit into the memory of {device} with dtype {model.dtype}. Set "
            "policy.dtype to bfloat16, free the device, or choose a smaller model."
        ) from error
    return moved


def _repair_generation_config(model: PreTrainedModel) -> None:
    """Some checkpoints set a temperature but not `do_sample`; transformers then refuses to save the trained model."""
    settings: Any = model.generation_config
    try:
        settings.validate(strict=True)
    except ValueError:
        settings.do_sample = True


def _keep_cap(model: PreTrainedModel, asked: str | None) -> None:
    """Where attention scores have a cap, use an attention that applies it; transformers' default leaves it out."""
    cap = score_cap(model.config)
    if cap is not None and asked == "sdpa":
        raise ModelError(
            f"attn_implementation is sdpa, which leaves out the cap of {cap:g} on the attention scores of "
            f"{type(model).__name__}. Leave it out, or choose eager."
        )
    if cap is not None and asked is None:
        model.set_attn_implementation("eager")


def _folder(path: Path | str) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise ModelError(f"There is no model folder {str(path)!r}; give a folder written by save_pretrained.")
    return folder


def _download(name: str, revision: str | None) -> Path:
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*_FILES, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*_FILES, "pytorch_model*.bin"]))
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise ModelError(
            f"Model {name!r} is neither a local folder nor a built-in name, and the hub did not give it: "
            f"{_first_line(error)} Check the name and the connection, or give a local folder. {suggest(name, BUILTIN)}"
        ) from error
    return folder


def _guesses_apart(error: BaseException) -> str:
    """`_first_line`, in plain words where the library's only opens a list of guesses."""
    line = _first_line(error)
    return "its tokenizer files (such as tokenizer.json) are missing." if line.endswith(":.") else line


def _first_line(error: BaseException) -> str:
    """The first line of a library's message, closed by a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0][:300] if lines else type(error).__name__
    return text if text.endswith((".", "!", "?")) else text + "."

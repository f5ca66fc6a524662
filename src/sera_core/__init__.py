"""Sera: compose self-alignment methods for language models and compare them with evidence."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sera_core.ablating.frame import ablate
    from sera_core.runner import RunResult, run

__version__ = version("sera-core")
__all__ = ["RunResult", "__version__", "ablate", "run"]

_HOMES = {"RunResult": "runner", "ablate": "ablating.frame", "run": "runner"}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """`run`, `ablate` and `RunResult` on first use: importing the package alone must not import torch."""
    if name in _HOMES:
        return getattr(import_module(f"sera_core.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'sera_core' has no attribute '{name}'")

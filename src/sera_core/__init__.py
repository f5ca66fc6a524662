"""Sera: compose self-alignment methods for language models and compare them with evidence."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sera_core.runner import RunResult, run

__version__ = version("sera-core")
__all__ = ["RunResult", "__version__", "run"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """`run` and `RunResult` on first use: importing the package alone must not import torch."""
    if name in {"run", "RunResult"}:
        from sera_core import runner

        return getattr(runner, name)
    raise AttributeError(f"module 'sera_core' has no attribute '{name}'")

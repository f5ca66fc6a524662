"""The processes of one run: rank 0 decides and writes, all ranks train, and the first that fails says why.

A launcher such as ``accelerate launch`` or ``torchrun`` starts several processes with the same command. All of them go
through the same run; what only one may do goes through `Ranks.on_main`. One process alone is the same with nobody to
agree with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

from sera_core.errors import ConfigError, SeraError

T = TypeVar("T")

_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")

# A rank that waits notices at once when another one dies, so only the length of a stage matters here.
_LONGEST_STAGE = timedelta(days=365)
_LONGEST_CHECKPOINT = timedelta(hours=2)
_UNTIL_SAID = timedelta(seconds=10)


class OtherRankError(SeraError):
    """Another rank failed and says why; this one has nothing to add."""


class Ranks:
    """One process alone: rank 0 of a world of 1."""

    rank = 0
    world = 1

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which decides and writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when all ranks have come here."""
        self.broadcast(None)

    def broadcast(self, value: T) -> T:
        """The `value` of rank 0, on every rank; any object that can be pickled."""
        return value

    def on_main(self, compute: Callable[[], T]) -> T:
        """What `compute` returns on rank 0, on every rank; nobody else computes it. It may take as long as it likes.

        Raises:
            OtherRankError: `compute` failed, and this is not rank 0. There its own exception is raised.
        """
        return compute()

    def main_first(self, compute: Callable[[], T]) -> T:
        """What `compute` returns here, after it has filled shared caches on rank 0. Raises as `on_main`."""
        kept: list[T] = []
        self.on_main(lambda: kept.append(compute()))
        return kept[0] if kept else compute()

    def speaks(self, error: BaseException) -> bool:  # noqa: ARG002
        """Whether this rank failed first, and so is the one to say why."""
        return True

    def tell(self, error: BaseException, say: Callable[[], None]) -> None:  # noqa: ARG002
        """Call `say` on the rank that failed first; return on the others when it has spoken, or ended."""
        say()

    def leave(self) -> None:
        """Take leave of the other ranks at the end of the process."""


class LaunchedRanks(Ranks):
    """One of several processes that a launcher started."""

    def __init__(self) -> None:
        """`torch.distributed` must be initialised; every rank must construct its own at the same time."""
        import torch.distributed as dist

        self._dist: Any = dist
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        # Waiting on the CPU is neither limited by a collective's timeout nor busy.
        self._group = dist.new_group(backend="gloo", timeout=_LONGEST_STAGE)
        self._store: Any = dist.distributed_c10d._get_default_store()
        self._name = self.broadcast(f"sera-{uuid4().hex}")

    def wait(self) -> None:
        """See `Ranks.wait`."""
        self._dist.barrier(group=self._group)

    def broadcast(self, value: T) -> T:
        """See `Ranks.broadcast`."""
        box = [value]
        self._dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def on_main(self, compute: Callable[[], T]) -> T:
        """See `Ranks.on_main`."""
        if not self.main:
            done, value = self.broadcast((False, None))
            if not done:
                raise OtherRankError(f"Rank 0 failed: {value}")
            return value  # type: ignore[return-value]  # what rank 0 computed
        try:
            computed = compute()
        except BaseException as error:
            self.speaks(error)
            # Ranks that are gone need not be told.
            with suppress(RuntimeError):
                self.broadcast((False, str(error)))
            raise
        self.broadcast((True, computed))
        return computed

    def speaks(self, error: BaseException) -> bool:
        """See `Ranks.speaks`."""
        if isinstance(error, OtherRankError):
            return False
        try:
            first = self._store.compare_set(f"{self._name}-failed", "", str(self.rank))
        except RuntimeError:
            # The store lives with rank 0 or with the launcher, which has ended.
            return False
        return bool(first == str(self.rank).encode())

    def tell(self, error: BaseException, say: Callable[[], None]) -> None:
        """See `Ranks.tell`. A launcher that sees one rank end stops the others, even in the middle of a sentence."""
        said = f"{self._name}-said"
        if self.speaks(error):
            say()
            with suppress(RuntimeError):
                self._store.set(said, "1")
        else:
            with suppress(RuntimeError):
                self._store.wait([said], _UNTIL_SAID)

    def leave(self) -> None:
        """See `Ranks.leave`."""
        self._dist.destroy_process_group()


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join() -> Ranks:
    """The ranks of this process: itself alone, or those its launcher started, once all of them are here.

    Raises:
        ConfigError: a launcher's settings that a run cannot follow.
    """
    if not launched():
        _check_alone()
        return Ranks()
    import torch.distributed as dist

    if not dist.is_initialized():
        _initialise()
    return LaunchedRanks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks of this process. Of all errors, only that of the first rank to fail leaves as it is.

    On the other ranks a SeraError, or the RuntimeError of a broken connection, becomes an OtherRankError.
    """
    ranks = join()
    try:
        yield ranks
    except BaseException as error:
        if ranks.speaks(error) or not isinstance(error, SeraError | RuntimeError):
            raise
        raise OtherRankError(str(error)) from error


def _initialise() -> None:
    """Meet the other ranks on the devices a run uses: GPUs where there are any, else CPUs."""
    import torch
    import torch.distributed as dist

    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set. Start several processes "
            "with `accelerate launch` or `torchrun`, or unset WORLD_SIZE."
        )
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    _check_launcher(gpus, torch.backends.mps.is_available())
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpus else "gloo", timeout=_LONGEST_CHECKPOINT)


def _check_alone() -> None:
    """Refuse the one process that `accelerate launch` starts without GPUs when asked for several."""
    if {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            "`accelerate launch` was asked for several processes, but it started one, or leaves them to MPI. Start "
            "them with `accelerate launch --multi_gpu`, which works on CPUs as well, or with `torchrun`; for one "
            "process, unset MASTER_ADDR."
        )


def _check_launcher(gpus: int, mps: bool) -> None:
    asked = [name for name in _SHARDING if _true(name)]
    if asked:
        raise ConfigError(
            f"The launcher asks for a sharded model ({asked[0]}), which a run does not do. Use the launcher's plain "
            "multi-GPU mode; where memory is short, train an adapter (policy.lora)."
        )
    if mps:
        raise ConfigError("Several processes need CUDA GPUs or CPUs, and this is neither. Start one process.")
    if gpus and _true("ACCELERATE_USE_CPU"):
        raise ConfigError(
            "The launcher asks for CPUs, but scoring and generation would use the GPU. Hide it: CUDA_VISIBLE_DEVICES= "
            "before the command."
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE", int(os.environ["LOCAL_RANK"]) + 1))
    if gpus and here > gpus:
        raise ConfigError(f"{here} processes were started for {gpus} GPUs here. Start one for each.")


def _true(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in {"1", "true", "yes", "on"}

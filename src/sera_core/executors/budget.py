"""How many runs fit beside each other: a number of processes, cores and memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sera_core.ablating.work import Task
from sera_core.errors import ConfigError
from sera_core.executors.devices import devices_here

if TYPE_CHECKING:
    from sera_core.ablation import Arm

GB = 1e9
# What an interpreter with torch and transformers takes, and a small model with it.
_EMPTY = 1.0 * GB
_SHARE = 0.9
# Weights, gradients and two moments in float32, the reference or another policy beside it, and activations.
_COPIES = 6


@dataclass(slots=True)
class Budget:
    """What runs may take together.

    processes: runs at a time, at most; None where the executor may decide. cores and memory (bytes) are shared by them;
    None means the cores of the machine, and nine tenths of its memory. devices, by their names, are shared too where
    runs are made `here`; None means those of the machine. `peak` is the most that a run was measured to hold.
    """

    processes: int | None = 1
    cores: int | None = None
    memory: float | None = None
    devices: tuple[str, ...] | None = None
    here: bool = True
    peak: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Refuse numbers that nothing could run with.

        Raises:
            ConfigError: one of them is not positive.
        """
        for name in ("processes", "cores", "memory"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"--{name} must be positive, got {value}.")

    @property
    def all_cores(self) -> int:
        """The cores there are."""
        own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return self.cores or own or 1

    @property
    def all_memory(self) -> float | None:
        """The bytes that runs may hold together; None where nothing was said and the system does not say."""
        if self.memory is not None or not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
            return self.memory
        return _SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    @property
    def all_devices(self) -> tuple[str, ...]:
        """The devices there are."""
        if self.devices is None:
            self.devices = devices_here()
        return self.devices

    def threads(self, task: Task) -> int | None:
        """The threads of a run: the arm's own number, else the cores over the processes; None: as torch decides."""
        own = task.job.arm.resources.cores
        if own is not None:
            return own
        if self.cores is None and self.processes in (None, 1):
            return None
        return max(1, self.all_cores // (self.processes or self.all_cores))

    def bytes(self, task: Task) -> float:
        """The memory of a run: the arm's own number, else the most measured so far, else an estimate."""
        own = task.job.arm.resources.memory
        return own * GB if own is not None else float(self.peak or estimate(task.job.settings))

    def fits(self, task: Task, running: Iterable[Task]) -> bool:
        """Whether a task fits beside those that run; alone it always does."""
        beside = list(running)
        if not beside:
            return True
        if self.processes is not None and len(beside) >= self.processes:
            return False
        everyone = [task, *beside]
        if sum(self.threads(each) or 1 for each in everyone) > self.all_cores and self._limits_cores(everyone):
            return False
        gpus = sum(each.job.arm.resources.gpus for each in everyone)
        if self.here and gpus and gpus > len(self.all_devices):
            return False
        memory = self.all_memory
        return memory is None or sum(map(self.bytes, everyone)) <= memory

    def _limits_cores(self, tasks: list[Task]) -> bool:
        """Cores count where they were asked for; more processes than cores are the user's choice."""
        asked = any(task.job.arm.resources.cores is not None for task in tasks)
        return asked or self.cores is not None or self.processes is None

    def at_a_time(self, tasks: Iterable[Task]) -> int:
        """How many of the tasks fit beside each other, taken in order."""
        running: list[Task] = []
        for task in tasks:
            if not self.fits(task, running):
                break
            running.append(task)
        return max(1, len(running))

    def check(self, arm: Arm) -> None:
        """Refuse an arm whose own resources are more than there can ever be for it.

        Raises:
            ConfigError: it asks for more cores or memory than all runs may take together, or for more devices than
                this machine has.
        """
        own, gigabytes = arm.resources, None if self.memory is None else self.memory / GB
        for name, asked, there in (("cores", own.cores, self.cores), ("memory", own.memory, gigabytes)):
            if asked is not None and there is not None and asked > there:
                raise ConfigError(
                    f"Arm '{arm.name}': resources.{name} = {asked:g} is more than the --{name} {there:g} for all runs "
                    "together. Change one of them."
                )
        if self.here and own.gpus and own.gpus > (count := len(self.all_devices)):
            raise ConfigError(
                f"Arm '{arm.name}': resources.gpus = {own.gpus:g}, but this machine has {count}. Lower it, or use "
                "--executor ray on a cluster that has them."
            )


def estimate(settings: Mapping[str, Any]) -> float:
    """Bytes that a run should take, by the size of its policy where that is a folder; else those of a small one."""
    policy = settings.get("policy")
    model = policy.get("model", "") if isinstance(policy, Mapping) else ""
    folder = Path(str(model))
    weights = folder.glob("*.safetensors") if model and folder.is_dir() else ()
    return _EMPTY + _COPIES * sum(file.stat().st_size for file in weights)

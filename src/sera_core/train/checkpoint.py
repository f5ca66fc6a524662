"""Checkpoints that are either complete or absent, and the step file that goes with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sera_core.errors import StoreError
from sera_core.protocols import Stateful
from sera_core.records import StepRecord

_MARKER = "complete.json"
_COMPONENTS = "components.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint: its folder, its optimiser `step` and the step file's length in bytes at that moment."""

    path: Path
    step: int
    steps_bytes: int


class StepFile:
    """Step records as JSON lines, appended and flushed one by one. No times: equal runs write equal bytes."""

    def __init__(self, path: Path, keep: int) -> None:
        """Open `path` after cutting it to its first `keep` bytes.

        Raises:
            StoreError: the file is shorter than that.
        """
        if keep and (not path.exists() or path.stat().st_size < keep):
            raise StoreError(
                f"{path} is shorter than its checkpoint says. Delete {path.parent} to train from the start."
            )
        self._file = path.open("ab")
        self._file.truncate(keep)
        self._file.seek(keep)

    def write(self, record: StepRecord) -> None:
        """Append one record: iteration, step, then metrics by name."""
        line = {"iteration": record.iteration, "step": record.step, **record.metrics}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def length(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def __enter__(self) -> StepFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class Checkpoints(TrainerCallback):
    """Asks for a checkpoint every `every` optimiser steps and seals it; older ones go once it is sealed.

    The last step needs none: the final model follows at once.
    """

    def __init__(self, folder: Path, every: int, steps: StepFile | None, components: Mapping[str, Stateful]) -> None:
        """`steps` is None on all ranks but the first, which writes."""
        self._folder, self._every, self._steps, self._components = folder, every, steps, components

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,  # noqa: ARG002
    ) -> None:
        """Ask for a checkpoint when it is time."""
        if state.global_step % self._every == 0 and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: object,  # noqa: ARG002
    ) -> None:
        """Add component states and the marker, then delete older checkpoints."""
        if args.world_size > 1:
            # Every rank writes its own random state.
            dist.barrier()
        if self._steps is None:
            return
        path = self._folder / f"checkpoint-{state.global_step}"
        states = {name: component.state_dict() for name, component in self._components.items()}
        (path / _COMPONENTS).write_text(json.dumps(states), encoding="utf-8")
        marker = {"step": state.global_step, "steps_bytes": self._steps.length()}
        partial = path / f"{_MARKER}.partial"
        partial.write_text(json.dumps(marker), encoding="utf-8")
        partial.replace(path / _MARKER)
        for other in self._folder.glob("checkpoint-*"):
            if other != path:
                _delete(other)


def last_complete(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint in `folder`, None where there is none.

    Raises:
        StoreError: a marker that cannot be read.
    """
    found: list[Checkpoint] = []
    for marker in folder.glob(f"checkpoint-*/{_MARKER}"):
        try:
            values = json.loads(marker.read_text(encoding="utf-8"))
            found.append(Checkpoint(marker.parent, values["step"], values["steps_bytes"]))
        except (ValueError, KeyError, OSError) as error:
            raise StoreError(f"Cannot read the checkpoint marker {marker}: {error}. Delete {marker.parent}.") from error
    return max(found, key=lambda checkpoint: checkpoint.step, default=None)


def delete_checkpoints(folder: Path, *, complete: bool = True) -> None:
    """Delete the checkpoints in `folder`: all, or only those that a killed process left incomplete."""
    for path in folder.glob("checkpoint-*"):
        if complete or not (path / _MARKER).exists():
            _delete(path)


def restore_components(checkpoint: Checkpoint, components: Mapping[str, Stateful]) -> None:
    """Give stateful components the state they had when `checkpoint` was written.

    Raises:
        StoreError: the checkpoint holds other components than the run has.
    """
    states = json.loads((checkpoint.path / _COMPONENTS).read_text(encoding="utf-8"))
    if states.keys() != components.keys():
        raise StoreError(
            f"The checkpoint {checkpoint.path} has states for {sorted(states)}, the run has stateful components "
            f"{sorted(components)}. It belongs to another configuration; delete it to train from the start."
        )
    for name, component in components.items():
        component.load_state_dict(states[name])


def _delete(path: Path) -> None:
    # The marker goes first: a half-deleted checkpoint must not count as complete.
    (path / _MARKER).unlink(missing_ok=True)
    shutil.rmtree(path)

"""Callbacks of the trainer that keep no files: progress, and the order of the epoch."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sera_core.protocols import Progress
from sera_core.train.order import EpochBatches


class Announce(TrainerCallback):
    """Tells `progress` (steps done, steps in all) after every recorded step, on the main process."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: object,
    ) -> None:
        """The summary at the end of training has no `loss`: it is no step."""
        logs = kwargs["logs"]
        if state.is_world_process_zero and isinstance(logs, Mapping) and "loss" in logs:
            self._progress(state.global_step, state.max_steps)


class FollowEpoch(TrainerCallback):
    """Tells the order which epoch begins."""

    def __init__(self, order: EpochBatches) -> None:
        self._order = order

    def on_epoch_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: object,  # noqa: ARG002
    ) -> None:
        """On resume `state.epoch` is fractional, within the epoch to go on with."""
        self._order.epoch = int(state.epoch)

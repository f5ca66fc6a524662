"""A transformers.Trainer whose loss is the step algebra over pairs, exact under accumulation and over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from sera_core.errors import ModelError, StoreError
from sera_core.models.logps import default_budget, group_logps
from sera_core.protocols import Progress
from sera_core.records import PairBatch, PairLogps, StepRecord
from sera_core.train.batch import EpochBatches, PairDataset, PairInputs, collate
from sera_core.train.checks import check_finite, check_margins_zero, check_reference
from sera_core.train.effective import Fixed, Part, fix, needs_whole_batch
from sera_core.train.lora import adapter_off
from sera_core.train.metrics import micro_sums, step_metrics
from sera_core.train.seeds import training_seed
from sera_core.train.step import Algebra, batch_stats, pair_losses, reduce


class PairTrainer(Trainer):
    """Trains `model` on pairs.

    The loss of an optimiser step is the mean over its effective batch, whatever the micro-batches and ranks it is
    split into. `on_step` gets one record per optimiser step on the main process. With `policy_is_reference` the first
    effective batch is checked: margins exactly 0, stored reference log-probs equal to live ones up to rounding.
    `dtype` is what the stored ones were measured in (default: the model's). `token_budget` is that of `group_logps`,
    None the device's default.

    Raises (from `train`):
        ModelError: a failed check, or a loss or gradient that is not finite.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        dataset: PairDataset,
        algebra: Algebra,
        *,
        iteration: int,
        policy_is_reference: bool,
        on_step: Callable[[StepRecord], None],
        callbacks: Sequence[TrainerCallback] = (),
        dtype: torch.dtype | None = None,
        token_budget: int | None = None,
    ) -> None:
        seed = args.seed if args.data_seed is None else training_seed(args.data_seed, iteration)
        self._order = EpochBatches(
            len(dataset), args.per_device_train_batch_size, seed, args.process_index, args.world_size
        )
        super().__init__(
            model=model, args=args, train_dataset=dataset, callbacks=[*callbacks, _FollowEpoch(self._order)]
        )
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)
        self.policy = model
        self._algebra, self._iteration, self._on_step = algebra, iteration, on_step
        self._dtype: torch.dtype = dtype or model.dtype
        self._budget = default_budget(args.device) if token_budget is None else token_budget
        self._check_start = policy_is_reference and algebra.objective.needs.reference
        self.last_metrics: Mapping[str, float] = {}
        self._batches: list[PairInputs] = []
        self._live: list[PairInputs] = []
        self._fixed: list[Fixed | None] = []
        self._rows: list[Tensor] = []

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Micro-batches of this rank. Accelerate would repeat pairs to even out the ranks; the order here does not."""
        return DataLoader(
            self.train_dataset,  # type: ignore[arg-type]  # always the PairDataset of the constructor
            batch_sampler=self._order,
            collate_fn=collate,
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            persistent_workers=self.args.dataloader_persistent_workers,
            # From torch's own generator it would draw as often as there are workers to start, and so move dropout.
            generator=torch.Generator(),
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[PairInputs], num_batches: int, device: torch.device
    ) -> tuple[list[PairInputs], int]:
        """All micro-batches of one optimiser step and how many pairs they hold over all ranks."""
        batches = [replace(batch, slot=slot) for slot, batch in enumerate(islice(epoch_iterator, num_batches))]
        total = torch.tensor(sum(batch.pairs for batch in batches), device=device)
        if self.args.world_size > 1:
            dist.all_reduce(total)
        self._batches = batches
        return batches, int(total)

    def compute_loss(  # type: ignore[override]  # micro-batches are records, not dicts
        self,
        model: nn.Module,
        inputs: PairInputs,
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
    ) -> Tensor:
        """The micro-batch's share of the effective batch's mean loss, times the ranks DDP averages over."""
        if num_items_in_batch is None or return_outputs:
            raise NotImplementedError("PairTrainer only trains: it has neither outputs nor an evaluation loop.")
        if inputs.slot == 0:
            self._open_step(model)
        inputs = self._live[inputs.slot]
        fixed = self._fixed[inputs.slot]
        logps = self._logps(model, inputs)
        split = None if fixed is None else (fixed.keep, fixed.flip)
        result = pair_losses(self._algebra, PairBatch(logps, self._progress(), self._iteration), split)
        if self._first_step():
            self._check_first(inputs, logps, result.base_margins)
        check_finite(result.losses.detach(), self.state.global_step + 1, inputs.ids)
        if fixed is None:
            weights = self._algebra.reweighter.weights(batch_stats(result, inputs.flipped, self._progress())).detach()
        else:
            weights = fixed.weights
        loss: Tensor = reduce(result, weights, num_items_in_batch) * self.args.world_size
        if not inputs.counted:
            return loss * 0.0
        self._rows.append(micro_sums(result, logps, weights))
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Replace the loss of a finished step by all its metrics, hand out its record, pass it on to trackers."""
        if "loss" in logs:
            record = self._record(logs)
            self.last_metrics, logs = record.metrics, dict(record.metrics)
            if self.is_world_process_zero():
                self._on_step(record)
        super().log(logs, start_time)
        # Every checkpoint would carry a growing copy of what the step file holds.
        self.state.log_history.clear()

    def floating_point_ops(self, inputs: object) -> int:  # noqa: ARG002
        """0: nothing here reads an operation count."""
        return 0

    def release(self) -> None:
        """Let go of model, optimiser and data, leaving no cycle that holds them. The trainer is of no use afterwards.

        A garbage collection may be a whole iteration away, and the next policy needs the memory.
        """
        # Autocast and schedulers put methods bound to an object into that same object.
        for name in ("forward", "_original_forward"):
            vars(self.policy).pop(name, None)
        for holder in (self.optimizer, self.lr_scheduler):
            inner = getattr(holder, "optimizer", None)
            for part in (holder, inner):
                if part is not None:
                    vars(part).clear()
        accelerator = self.accelerator
        vars(self.callback_handler).clear()
        vars(self).clear()
        accelerator.free_memory()

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except RuntimeError as error:
            # torch.save reports a full disk in this way, not as an OSError.
            folder = self.args.output_dir
            raise StoreError(
                f"A checkpoint could not be written to {folder}: {str(error).strip()}. Free space there and run again."
            ) from error

    def _prepare_inputs(self, inputs: PairInputs) -> PairInputs:  # type: ignore[override]  # see compute_loss
        """Leave the micro-batch as it is: `_open_step` moves the whole effective batch."""
        return inputs

    def _open_step(self, model: nn.Module) -> None:
        """Before the first micro-batch: live references at the start, and what the effective batch decides.

        It happens here and not while fetching because a resumed run restores its random state in between.
        """
        self._rows = []
        self._live = [batch.to(self.args.device) for batch in self._batches]
        if self._first_step():
            with torch.no_grad(), adapter_off(self.policy):
                self._live = [self._with_live_reference(model, batch) for batch in self._live]
        self._fixed = [None] * len(self._live)
        if needs_whole_batch(self._algebra):
            with torch.no_grad():
                parts = [Part(self._logps(model, b), b.flipped, b.counted) for b in self._live]
            ranks = self._gather(parts)
            self._fixed = fix(self._algebra, ranks, self.args.process_index, self._progress(), self._iteration)

    def _gather(self, parts: list[Part]) -> list[list[Part]]:
        """The micro-batches of all ranks, on this device."""
        if self.args.world_size == 1:
            return [parts]
        ranks: list[Any] = [None] * self.args.world_size
        dist.all_gather_object(ranks, [_moved(part, torch.device("cpu")) for part in parts])
        return [[_moved(part, self.args.device) for part in rank] for rank in ranks]

    def _logps(self, model: nn.Module, inputs: PairInputs) -> PairLogps:
        try:
            scored = group_logps(model, inputs.groups, token_budget=self._budget)
        except ModelError as error:
            names = ", ".join(map(repr, inputs.ids[:8]))
            advice = " Or lower training.learning_rate." if self.state.global_step else ""
            raise ModelError(f"Optimiser step {self.state.global_step + 1}, pairs {names}: {error}{advice}") from error
        return inputs.logps(scored.sums, scored.lengths)

    def _with_live_reference(self, model: nn.Module, batch: PairInputs) -> PairInputs:
        logps = self._logps(model, batch)
        return replace(batch, chosen_reference=logps.chosen_policy, rejected_reference=logps.rejected_policy)

    def _first_step(self) -> bool:
        return self._check_start and self.state.global_step == 0

    def _check_first(self, live: PairInputs, logps: PairLogps, margins: Tensor) -> None:
        """The step-0 check of one micro-batch."""
        check_margins_zero(margins, live.ids)
        stored = self._batches[live.slot].to(self.args.device)
        lengths = {"chosen": logps.chosen_length, "rejected": logps.rejected_length}
        half = self.args.bf16 or self.args.fp16
        dtype = torch.bfloat16 if half else self._dtype
        for side, length in lengths.items():
            kept, now = getattr(stored, f"{side}_reference"), getattr(live, f"{side}_reference")
            check_reference(side, kept, now, length, live.ids, dtype)

    def _record(self, logs: dict[str, float]) -> StepRecord:
        """The finished step's metrics over all its micro-batches and ranks."""
        rows = torch.stack(self._rows) if self._rows else None
        if self.args.world_size > 1:
            ranks: list[Any] = [None] * self.args.world_size
            dist.all_gather_object(ranks, rows)
            rows = torch.cat([part for part in ranks if part is not None])
        assert rows is not None  # noqa: S101  # rank 0 always holds a counted pair
        objective, reweighter = self._algebra.objective, self._algebra.reweighter
        metrics = step_metrics(rows, reference=objective.needs.reference, weighted=reweighter.needs.whole_batch)
        metrics |= {name: float(logs[name]) for name in ("learning_rate", "grad_norm") if name in logs}
        check = torch.tensor(metrics.get("grad_norm", 0.0))
        # With a loss scaler an overflow now and then is normal: the scaler skips the update.
        if not self.args.fp16 and not bool(torch.isfinite(check)):
            raise ModelError(
                f"The gradient norm at optimiser step {self.state.global_step} is {float(check)}. "
                "Lower training.learning_rate, or train in float32."
            )
        return StepRecord(self._iteration, self.state.global_step, metrics)

    def _progress(self) -> float:
        return self.state.global_step / max(self.state.max_steps, 1)


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


class _FollowEpoch(TrainerCallback):
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


def _moved(part: Part, device: torch.device) -> Part:
    logps = part.logps
    columns = (getattr(logps, name) for name in PairLogps.__slots__)
    moved = PairLogps(*(None if column is None else column.to(device) for column in columns))  # type: ignore[arg-type]
    return Part(moved, part.flipped.to(device), part.counted)

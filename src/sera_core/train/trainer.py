"""A transformers.Trainer whose loss is the step algebra over pairs, exact under accumulation and over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from sera_core.errors import ModelError, StoreError
from sera_core.records import PairLogps, StepRecord
from sera_core.train.batch import PairDataset, PairInputs, collate
from sera_core.train.callbacks import FollowEpoch
from sera_core.train.checks import check_finite, check_margins_zero, check_reference
from sera_core.train.dataset_scope import DatasetScope
from sera_core.train.effective import Fixed, Moment, Part, fix, gather, needs_whole_batch, of_ranks, pair_batch
from sera_core.train.last_seen import pair_rows
from sera_core.train.measuring import Extras, Measurer
from sera_core.train.metrics import micro_sums, step_metrics
from sera_core.train.order import EpochBatches
from sera_core.train.seeds import training_seed
from sera_core.train.step import Algebra, PairLosses, batch_stats, pair_losses, reduce
from sera_core.train.weighing import weigh, weighs_dataset, weighs_whole_batch

Result = TypeVar("Result")


class PairTrainer(Trainer):
    """Trains `model` on pairs.

    The loss of an optimiser step is the mean over its effective batch, whatever the micro-batches and ranks it is
    split into. `on_step` gets one record per optimiser step on the main process. With `policy_is_reference` the first
    effective batch is checked: margins exactly 0, stored reference log-probs equal to live ones up to rounding.
    `dtype` is what the stored ones were measured in (default: the model's). `measurer` runs the forward passes of
    `model`; `scope` holds what is decided for the whole training set.

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
        measurer: Measurer,
        scope: DatasetScope,
    ) -> None:
        seed = args.seed if args.data_seed is None else training_seed(args.data_seed, iteration)
        self._order = EpochBatches(
            dataset.costs(),
            args.per_device_train_batch_size,
            seed,
            args.process_index,
            args.world_size,
            args.gradient_accumulation_steps,
        )
        super().__init__(
            model=model, args=args, train_dataset=dataset, callbacks=[*callbacks, FollowEpoch(self._order)]
        )
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)
        self.policy, self.tokens = model, measurer.tokens
        self._algebra, self._iteration, self._on_step = algebra, iteration, on_step
        self._dtype: torch.dtype = dtype or model.dtype
        self._measurer, self._scope = measurer, scope
        self._check_start = policy_is_reference and algebra.objective.needs.reference
        self.last_metrics: Mapping[str, float] = {}
        self._batches: list[PairInputs] = []
        self._live: list[PairInputs] = []
        self._extras: list[Extras] = []
        self._fixed: list[Fixed | None] = []
        self._rows: list[Tensor] = []
        self._seen: list[Tensor] = []
        self._reported: dict[str, float] = {}

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
            self._open_step()
        slot = inputs.slot
        inputs, fixed, extras = self._live[slot], self._fixed[slot], self._extras[slot]
        logps = self._logps(model, inputs)
        if not inputs.counted:
            # Its forward pass keeps the ranks in step; a component that saw it might remember it.
            return (logps.chosen_policy.sum() + logps.rejected_policy.sum()) * 0.0
        split = self._scope.split_of(inputs.indices) if fixed is None else (fixed.keep, fixed.flip)
        batch = pair_batch(self._algebra, logps, extras, self._moment())
        result = pair_losses(self._algebra, batch, split, extras.extrapolated)
        self._reported |= result.metrics
        if self._unmoved():
            self._check_first(inputs, logps, result.base_margins)
        check_finite(result.losses.detach(), self.state.global_step + 1, inputs.ids)
        weights = self._weights(inputs, result, fixed)
        self._rows.append(micro_sums(result, logps, weights, inputs.flipped))
        self._seen.append(pair_rows(self._batches[slot].indices, result, weights))
        loss: Tensor = reduce(result, weights, num_items_in_batch) * self.args.world_size
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

    def _open_step(self) -> None:
        """Before the first micro-batch: live references at the start, and what is decided for many pairs at once.

        It happens here and not while fetching because a resumed run restores its random state in between. It passes by
        the data-parallel wrapper, whose forward passes must be equally many on all ranks.
        """
        self._rows, self._seen, self._reported = [], [], {}
        self._live = [batch.to(self.args.device) for batch in self._batches]
        if self._unmoved():
            self._live = [self._explained(batch, self._measurer.with_live_reference) for batch in self._live]
        # A filler is never looked at.
        self._extras = [
            self._explained(batch, lambda each: self._measurer.extras(each, extrapolate=not self._unmoved()))
            if batch.counted
            else Extras()
            for batch in self._live
        ]
        with self.accelerator.autocast():
            self._reported |= self._scope.measure(
                self._measurer, self.args, self._moment(), live_reference=self._unmoved()
            )
        self._fixed = [None] * len(self._live)
        if needs_whole_batch(self._algebra) and not self._alone():
            with torch.no_grad():
                parts = [
                    Part(
                        b.ids,
                        self._logps(self.policy, b),
                        b.flipped,
                        b.counted,
                        extras,
                        self._scope.split_of(b.indices),
                        b.places,
                    )
                    for b, extras in zip(self._live, self._extras, strict=True)
                ]
            ranks = gather(parts, self.args.world_size, self.args.device)
            self._fixed, reported = fix(self._algebra, ranks, self.args.process_index, self._moment())
            self._reported |= reported

    def _alone(self) -> bool:
        """Whether the effective batch is one micro-batch, whose training pass shows everything there is to see."""
        return len(self._live) == 1 and self.args.world_size == 1

    def _weights(self, inputs: PairInputs, result: PairLosses, fixed: Fixed | None) -> Tensor:
        """Weights [b] of one micro-batch."""
        if self._scope.weights is not None:
            return self._scope.weights.of(inputs.indices)[0]
        if fixed is not None and fixed.weights is not None:
            return fixed.weights
        weighed = weigh(self._algebra.reweighter, batch_stats(result, inputs.flipped, self._progress()))
        self._reported |= weighed.metrics
        return weighed.weights

    def _logps(self, model: nn.Module, inputs: PairInputs) -> PairLogps:
        return self._explained(inputs, lambda each: self._measurer.logps(model, each.plain))

    def _explained(self, inputs: PairInputs, measure: Callable[[PairInputs], Result]) -> Result:
        """What `measure` gives; its errors say where training stands and which pairs are meant."""
        try:
            # The forward pass enters autocast by itself, the output embedding's part after it does not.
            with self.accelerator.autocast():
                return measure(inputs)
        except ModelError as error:
            names = ", ".join(map(repr, inputs.ids[:8]))
            advice = " Or lower training.learning_rate." if self.state.global_step else ""
            raise ModelError(f"Optimiser step {self.state.global_step + 1}, pairs {names}: {error}{advice}") from error

    def _unmoved(self) -> bool:
        """Whether the policy is still exactly its reference: no step so far had a learning rate above 0."""
        return self._check_start and all(map(self._idle, range(self.state.global_step)))

    def _idle(self, step: int) -> bool:
        """Whether the schedule gives the optimiser step after `step` others a rate of 0, as a warm-up's first step."""
        scheduler = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        factors: list[Callable[[int], float]] = getattr(scheduler, "lr_lambdas", [])
        return bool(factors) and all(factor(step) == 0 for factor in factors)

    def _check_first(self, live: PairInputs, logps: PairLogps, margins: Tensor) -> None:
        """The step-0 check of one micro-batch."""
        check_margins_zero(margins, live.ids)
        stored = self._batches[live.slot].to(self.args.device)
        half = self.args.bf16 or self.args.fp16
        dtype = torch.bfloat16 if half else self._dtype
        asked = [(stored.plain, live.plain)] + [(stored.prefixed[p], live.prefixed[p]) for p in live.prefixed]
        for side, length in (("chosen", logps.chosen_length), ("rejected", logps.rejected_length)):
            for kept, now in asked:
                values = [getattr(answers, f"{side}_reference") for answers in (kept, now)]
                check_reference(side, values[0], values[1], length, live.ids, dtype)

    def _record(self, logs: dict[str, float]) -> StepRecord:
        """The finished step's metrics over all its micro-batches and ranks, and what it saw of each pair."""
        ranks = of_ranks((self._rows, self._seen), self.args.world_size)
        rows = torch.stack([row for own, _ in ranks for row in own])
        self._scope.seen.put(torch.cat([part for _, seen in ranks for part in seen]))
        objective, reweighter = self._algebra.objective, self._algebra.reweighter
        weighted = weighs_whole_batch(reweighter) or weighs_dataset(reweighter)
        metrics = step_metrics(rows, reference=objective.needs.reference, weighted=weighted) | self._reported
        metrics |= {name: float(logs[name]) for name in ("learning_rate", "grad_norm") if name in logs}
        check = torch.tensor(metrics.get("grad_norm", 0.0))
        # With a loss scaler an overflow now and then is normal: the scaler skips the update.
        if not self.args.fp16 and not bool(torch.isfinite(check)):
            raise ModelError(
                f"The gradient norm at optimiser step {self.state.global_step} is {float(check)}. "
                "Lower training.learning_rate, or train in float32."
            )
        return StepRecord(self._iteration, self.state.global_step, metrics)

    def _moment(self) -> Moment:
        return Moment(self.state.global_step + 1, self._progress(), self._iteration)

    def _progress(self) -> float:
        return self.state.global_step / max(self.state.max_steps, 1)

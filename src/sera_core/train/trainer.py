"""A transformers.Trainer whose loss is the step algebra over pairs, exact under accumulation and over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from sera_core.errors import ModelError, StoreError
from sera_core.models.logps import default_budget, group_logps
from sera_core.records import PairBatch, PairLogps, StepRecord
from sera_core.train.batch import Draw, EpochBatches, PairDataset, PairInputs, collate
from sera_core.train.callbacks import FollowEpoch
from sera_core.train.checks import check_finite, check_margins_zero, check_reference
from sera_core.train.dataset_weights import DatasetWeights
from sera_core.train.effective import Fixed, Moment, Part, fix, gather, needs_whole_batch, weigh_dataset
from sera_core.train.lora import adapter_off
from sera_core.train.metrics import micro_sums, step_metrics
from sera_core.train.seeds import training_seed
from sera_core.train.step import Algebra, PairLosses, batch_stats, pair_losses, reduce
from sera_core.train.weighing import weigh, weighs_dataset, weighs_whole_batch

# Pairs passed on at once while the whole training set is measured; forward passes are cut by the token budget.
_MEASURED_TOGETHER = 512


class PairTrainer(Trainer):
    """Trains `model` on pairs.

    The loss of an optimiser step is the mean over its effective batch, whatever the micro-batches and ranks it is
    split into. `on_step` gets one record per optimiser step on the main process. With `policy_is_reference` the first
    effective batch is checked: margins exactly 0, stored reference log-probs equal to live ones up to rounding.
    `dtype` is what the stored ones were measured in (default: the model's). `token_budget` is that of `group_logps`,
    None the device's default. `dataset_weights` are there exactly when the reweighter weighs the whole training set.

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
        dataset_weights: DatasetWeights | None = None,
    ) -> None:
        seed = args.seed if args.data_seed is None else training_seed(args.data_seed, iteration)
        self._order = EpochBatches(
            len(dataset), args.per_device_train_batch_size, seed, args.process_index, args.world_size
        )
        super().__init__(
            model=model, args=args, train_dataset=dataset, callbacks=[*callbacks, FollowEpoch(self._order)]
        )
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)
        self.policy = model
        self._algebra, self._iteration, self._on_step = algebra, iteration, on_step
        self._dataset, self._dataset_weights = dataset, dataset_weights
        self._dtype: torch.dtype = dtype or model.dtype
        self._budget = default_budget(args.device) if token_budget is None else token_budget
        self._check_start = policy_is_reference and algebra.objective.needs.reference
        self.last_metrics: Mapping[str, float] = {}
        self._batches: list[PairInputs] = []
        self._live: list[PairInputs] = []
        self._fixed: list[Fixed | None] = []
        self._rows: list[Tensor] = []
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
        inputs, fixed = self._live[inputs.slot], self._fixed[inputs.slot]
        logps = self._logps(model, inputs)
        if not inputs.counted:
            # Its forward pass keeps the ranks in step; a component that saw it might remember it.
            return (logps.chosen_policy.sum() + logps.rejected_policy.sum()) * 0.0
        split = None if fixed is None else (fixed.keep, fixed.flip)
        result = pair_losses(self._algebra, PairBatch(logps, self._progress(), self._iteration), split)
        if self._first_step():
            self._check_first(inputs, logps, result.base_margins)
        check_finite(result.losses.detach(), self.state.global_step + 1, inputs.ids)
        weights = self._weights(inputs, result, fixed)
        self._rows.append(micro_sums(result, logps, weights, inputs.flipped))
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
        self._rows, self._reported = [], {}
        self._live = [batch.to(self.args.device) for batch in self._batches]
        if self._first_step():
            with torch.no_grad(), adapter_off(self.policy):
                self._live = [self._with_live_reference(batch) for batch in self._live]
        if self._dataset_weights is not None:
            if self._dataset_weights.due(self.state.global_step):
                self._weigh_dataset(self._dataset_weights)
            self._reported["reweighted_at"] = float(self._dataset_weights.measured_at)
        self._fixed = [None] * len(self._live)
        if needs_whole_batch(self._algebra) and not self._alone():
            with torch.no_grad():
                parts = [Part(b.ids, self._logps(self.policy, b), b.flipped, b.counted) for b in self._live]
            ranks = gather(parts, self.args.world_size, self.args.device)
            self._fixed, reported = fix(self._algebra, ranks, self.args.process_index, self._moment())
            self._reported |= reported

    def _alone(self) -> bool:
        """Whether the effective batch is one micro-batch, whose training pass shows everything there is to see."""
        return len(self._live) == 1 and self.args.world_size == 1

    def _weights(self, inputs: PairInputs, result: PairLosses, fixed: Fixed | None) -> Tensor:
        """Weights [b] of one micro-batch."""
        if self._dataset_weights is not None:
            return self._dataset_weights.of(inputs.indices)
        if fixed is not None and fixed.weights is not None:
            return fixed.weights
        weighed = weigh(self._algebra.reweighter, batch_stats(result, inputs.flipped, self._progress()))
        self._reported |= weighed.metrics
        return weighed.weights

    def _weigh_dataset(self, dataset_weights: DatasetWeights) -> None:
        """Weigh all training pairs by the policy as it is now, dropout off; every rank passes a share through it."""
        share = np.array_split(np.arange(len(self._dataset)), self.args.world_size)[self.args.process_index]
        self.policy.train(mode=False)
        with torch.no_grad():
            parts = [
                self._measured(share[start : start + _MEASURED_TOGETHER].tolist())
                for start in range(0, len(share), _MEASURED_TOGETHER)
            ]
        self.policy.train()
        ranks = gather(parts, self.args.world_size, self.args.device)
        moment = self._moment()
        weighed = weigh_dataset(self._algebra, [part for rank in ranks for part in rank], moment)
        dataset_weights.put(weighed.weights, moment.step)
        self._reported |= weighed.metrics

    def _measured(self, indices: list[int]) -> Part:
        inputs = collate([self._dataset[Draw(index, True)] for index in indices]).to(self.args.device)
        logps = self._logps(self.policy, inputs)
        if self._first_step():
            # The stored reference differs from the live one by rounding, which would pass for a margin.
            logps = replace(logps, chosen_reference=logps.chosen_policy, rejected_reference=logps.rejected_policy)
        return Part(inputs.ids, logps, inputs.flipped)

    def _logps(self, model: nn.Module, inputs: PairInputs) -> PairLogps:
        try:
            scored = group_logps(model, inputs.groups, token_budget=self._budget)
        except ModelError as error:
            names = ", ".join(map(repr, inputs.ids[:8]))
            advice = " Or lower training.learning_rate." if self.state.global_step else ""
            raise ModelError(f"Optimiser step {self.state.global_step + 1}, pairs {names}: {error}{advice}") from error
        return inputs.logps(scored.sums, scored.lengths)

    def _with_live_reference(self, batch: PairInputs) -> PairInputs:
        logps = self._logps(self.policy, batch)
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

"""Train one iterate: from pairs and a start policy to a saved model and its step records, resumable at any moment."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from sera_core.errors import ConfigError, ModelError, StoreError
from sera_core.evidence import TRAINED, write_evidence
from sera_core.meter import Meter
from sera_core.models.engine import engine_of
from sera_core.models.load import quiet, save_policy
from sera_core.models.logps import default_budget
from sera_core.protocols import Progress, Stateful
from sera_core.records import Pairs, StepRecord
from sera_core.train.arguments import build_arguments
from sera_core.train.batch import PairDataset, Prefixed, Reference
from sera_core.train.callbacks import Announce
from sera_core.train.checkpoint import (
    Checkpoints,
    StepFile,
    delete_checkpoints,
    last_complete,
    restore_components,
)
from sera_core.train.checks import check_moved, check_trainable, disable_dropout, sample_parameters
from sera_core.train.dataset_scope import DatasetScope, dataset_scope
from sera_core.train.effective import of_ranks
from sera_core.train.lora import LoraOptions, merge, wrap_lora
from sera_core.train.measuring import Measurer, reference_model
from sera_core.train.needs import check_needs
from sera_core.train.precision import cast_back, cast_to_master, set_precision
from sera_core.train.seeds import training_seed
from sera_core.train.step import Algebra
from sera_core.train.trainer import PairTrainer

# A row per training pair, as it was when training saw it last.
EVIDENCE = "pairs.arrow"
_FEWEST_STEPS_BETWEEN = 10


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """Everything one training stage depends on.

    `reference` holds stored log-probs, (chosen float32 [n], rejected float32 [n]) aligned with `pairs`, None exactly
    when the objective needs none. `training` are TrainingArguments fields. `policy_is_reference` says that the start
    policy's weights are those the reference was measured with (compare their hashes); then step 0 is checked.
    `keep_dropout` trains with the model's own dropout, which is otherwise off. `checkpoint_every` counts optimiser
    steps; None means about four checkpoints an epoch. `card` is the README of the saved model. `progress` is told
    (steps done, steps in all). `token_budget` limits the tokens of a forward pass; None means the device's default.
    `prefixed` holds the pairs under every prompt prefix the transforms ask for. `load_reference` gives the reference
    model itself, needed where the smoother asks for an extrapolated policy. `meter` counts the forward passes of all
    ranks.

    All randomness comes from (`seed`, `iteration`), the data order from (``training.data_seed``, `iteration`) where
    that is set. A half-precision policy is trained as float32 master weights and saved in its own dtype.
    """

    pairs: Pairs
    reference: Reference | None
    algebra: Algebra
    training: Mapping[str, Any]
    seed: int
    iteration: int
    workdir: Path
    load_model: Callable[[], PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase
    card: str
    policy_is_reference: bool
    lora: LoraOptions | None = None
    keep_dropout: bool = False
    checkpoint_every: int | None = None
    progress: Progress | None = None
    token_budget: int | None = None
    prefixed: Mapping[str, Prefixed] = field(default_factory=dict)
    load_reference: Callable[[], PreTrainedModel] | None = None
    meter: Meter | None = None


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The saved `model` folder, the `steps_file`, optimiser steps in all, and the last step's metrics.

    `resumed_from` is the optimiser step of the checkpoint that was continued, 0 for none.
    """

    model: Path
    steps_file: Path
    steps: int
    resumed_from: int
    metrics: Mapping[str, float] = field(default_factory=dict)


def train(request: TrainRequest, on_step: Callable[[StepRecord], None]) -> TrainResult:
    """Train; save the model under ``workdir/model``, step records in ``steps.jsonl``, pairs as seen in ``pairs.arrow``.

    Killed at any moment and called again with the same request, it continues from the last complete checkpoint and
    ends with the same bytes. `on_step` hears of every step done in this call.

    Raises:
        ConfigError: training fields or component needs that cannot be honoured. DataError: unusable pairs.
        ModelError: a failed check on model, reference or loss. StoreError: the disk refuses.
    """
    check_needs(request.algebra, request.reference is not None)
    try:
        with quiet():
            return _train(request, on_step)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            "The device ran out of memory during training. Lower training.per_device_train_batch_size and raise "
            "training.gradient_accumulation_steps by the same factor: the result stays the same."
        ) from error
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"Training could not write to {request.workdir}: {getattr(error, 'strerror', None) or error}. "
            "Free space and run again."
        ) from error
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _train(request: TrainRequest, on_step: Callable[[StepRecord], None]) -> TrainResult:
    folder, steps_path = request.workdir, request.workdir / "steps.jsonl"
    dataset = PairDataset(request.pairs, request.reference, request.prefixed)
    folder.mkdir(parents=True, exist_ok=True)
    arguments = build_arguments(
        request.training, output_dir=folder, seed=training_seed(request.seed, request.iteration)
    )
    if arguments.should_save:
        delete_checkpoints(folder, complete=False)
    _barrier(arguments)
    checkpoint = last_complete(folder)
    keep = checkpoint.steps_bytes if checkpoint else 0
    with StepFile(steps_path, keep) if arguments.should_save else nullcontext() as steps:
        model, start = _start(request, arguments)
        scope = dataset_scope(request.algebra, dataset, _effective_batch(arguments))
        trainer = _trainer(request, arguments, scope, start, steps, on_step, model)
        try:
            if checkpoint is not None:
                restore_components(checkpoint, _stateful(request.algebra, scope))
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint.path))
            done, metrics = trainer.state.global_step, trainer.last_metrics
            _count(request.meter, trainer.tokens, arguments)
        finally:
            trainer.release()
    model = merge(model)
    cast_back(model, start.dtypes)
    check_moved(start.sample, model)
    if arguments.should_save:
        write_evidence(folder / EVIDENCE, TRAINED, scope.seen.columns(request.pairs.pairs))
        _save(model, request)
        delete_checkpoints(folder)
    _barrier(arguments)
    return TrainResult(folder / "model", steps_path, done, checkpoint.step if checkpoint else 0, metrics)


@dataclass(frozen=True, slots=True, eq=False)
class _Start:
    """What is remembered of the loaded policy: its `dtype`, a `sample` of its values, the `dtypes` to cast back to."""

    dtype: torch.dtype
    sample: list[Tensor]
    dtypes: Mapping[str, torch.dtype]


def _start(request: TrainRequest, arguments: TrainingArguments) -> tuple[PreTrainedModel, _Start]:
    """The freshly loaded start policy, ready to train: dropout off unless kept, adapter added or weights cast."""
    model = request.load_model()
    dtype, sample = model.dtype, sample_parameters(model)
    set_precision(arguments, dtype, request.training, request.lora is not None)
    if not request.keep_dropout:
        disable_dropout(model)
    if request.lora is not None:
        # Loading may or may not have drawn random numbers; the adapter must start the same.
        set_seed(arguments.seed)
        model = wrap_lora(model, request.lora)
    check_trainable(model)
    dtypes = cast_to_master(model)
    # Found before the trainer wraps the model: under its autocast a trial would compare rounding.
    engine_of(model)
    return model, _Start(dtype, sample, dtypes)


def _trainer(
    request: TrainRequest,
    arguments: TrainingArguments,
    scope: DatasetScope,
    start: _Start,
    steps: StepFile | None,
    on_step: Callable[[StepRecord], None],
    model: PreTrainedModel,
) -> PairTrainer:
    """The trainer of `model`, with its checkpoints and observers."""
    every = request.checkpoint_every or _quarter_epoch(arguments, len(scope.dataset))
    callbacks: list[TrainerCallback] = [
        Checkpoints(Path(arguments.output_dir or "."), every, steps, _stateful(request.algebra, scope))
    ]
    if request.progress is not None:
        callbacks.append(Announce(request.progress))

    def heard(record: StepRecord) -> None:
        if steps is not None:
            steps.write(record)
        on_step(record)

    use_cache = model.config.use_cache
    trainer = PairTrainer(
        model,
        arguments,
        scope.dataset,
        request.algebra,
        iteration=request.iteration,
        policy_is_reference=request.policy_is_reference,
        on_step=heard,
        callbacks=callbacks,
        dtype=start.dtype,
        measurer=_measurer(request, arguments, model),
        scope=scope,
    )
    # Trainer switches the cache off in the configuration, which would slow down whoever loads the saved model.
    model.config.use_cache = use_cache
    return trainer


def _quarter_epoch(arguments: TrainingArguments, pairs: int) -> int:
    """Optimiser steps between checkpoints: a quarter of an epoch, but not fewer than ten."""
    return max(_FEWEST_STEPS_BETWEEN, -(-pairs // (4 * _effective_batch(arguments))))


def _effective_batch(arguments: TrainingArguments) -> int:
    """Pairs of a full optimiser step."""
    pairs: int = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return pairs


def _measurer(request: TrainRequest, arguments: TrainingArguments, model: PreTrainedModel) -> Measurer:
    """The forward passes of `model`, with the reference model beside it where the smoother extrapolates."""
    budget = default_budget(arguments.device) if request.token_budget is None else request.token_budget
    strength, reference = request.algebra.smoother.needs.extrapolation, None
    if strength:
        other = None
        # The reference of an adapter's own base is that base: no second copy.
        if request.lora is None or not request.policy_is_reference:
            other = _reference(request, arguments)
        reference = reference_model(model, other)
    return Measurer(model, budget, strength, reference)


def _reference(request: TrainRequest, arguments: TrainingArguments) -> PreTrainedModel:
    if request.load_reference is None:
        raise ConfigError("The smoother extrapolates away from the reference model, and none was given.")
    other = request.load_reference()
    other.to(arguments.device)  # type: ignore[arg-type]  # transformers narrows what nn.Module.to accepts
    other.requires_grad_(requires_grad=False)
    other.train(mode=False)
    return other


def _stateful(algebra: Algebra, scope: DatasetScope) -> dict[str, Stateful]:
    """What of `algebra` keeps a state, by role, and what `scope` holds of the training set."""
    parts: dict[str, Any] = {
        "objective": algebra.objective,
        "smoother": algebra.smoother,
        "reweighter": algebra.reweighter,
        **scope.components(),
    }
    parts |= {f"transform {i}": transform for i, transform in enumerate(algebra.transforms)}
    return {name: part for name, part in parts.items() if isinstance(part, Stateful)}


def _save(model: PreTrainedModel, request: TrainRequest) -> None:
    """Write the model beside its place and move it there in one step."""
    target, partial = request.workdir / "model", request.workdir / "model.partial"
    for leftover in (partial, target):
        if leftover.exists():
            shutil.rmtree(leftover)
    save_policy(model, request.tokenizer, partial, request.card)
    partial.replace(target)


def _count(meter: Meter | None, tokens: Meter, arguments: TrainingArguments) -> None:
    """Add the tokens of all ranks to `meter`."""
    ranks = of_ranks(tokens, arguments.world_size)
    if meter is not None:
        for each in ranks:
            meter.add(each)


def _barrier(arguments: TrainingArguments) -> None:
    if arguments.world_size > 1:
        dist.barrier()

"""`training:` fields: which ones a run may set, and the TrainingArguments they become."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import SchedulerType, TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)
from transformers.training_args import OptimizerNames

from sera_core.errors import ConfigError, suggest

_SERA_WRITES = "Sera decides where and when it saves"
_NO_EVALUATION = "Sera evaluates after each iteration, with its own judges"
_EVERY_STEP = "Sera records every optimiser step"
_NO_HUB = "a run writes local folders only; upload the final model afterwards"
_OWN_BATCHES = "Sera builds the batches of pairs itself"
_NOT_SHARDED = "sharded training is not supported; train data-parallel, or an adapter (lora)"
_NOT_COMPILED = "compiled training is not supported"

OWNED: Mapping[str, str] = MappingProxyType(
    {
        "output_dir": _SERA_WRITES,
        "save_strategy": _SERA_WRITES,
        "save_steps": _SERA_WRITES,
        "save_total_limit": _SERA_WRITES,
        "save_only_model": _SERA_WRITES,
        "save_on_each_node": _SERA_WRITES,
        "enable_jit_checkpoint": _SERA_WRITES,
        "resume_from_checkpoint": "a run resumes by itself when the same command is given again",
        "ignore_data_skip": "a resumed run goes on exactly where it stopped",
        "restore_callback_states_from_checkpoint": "a resumed run restores what it needs",
        "seed": "set the seed of the run",
        "do_train": "a run always trains",
        "do_eval": _NO_EVALUATION,
        "do_predict": _NO_EVALUATION,
        "eval_strategy": _NO_EVALUATION,
        "eval_steps": _NO_EVALUATION,
        "eval_delay": _NO_EVALUATION,
        "eval_on_start": _NO_EVALUATION,
        "eval_accumulation_steps": _NO_EVALUATION,
        "eval_do_concat_batches": _NO_EVALUATION,
        "eval_use_gather_object": _NO_EVALUATION,
        "per_device_eval_batch_size": _NO_EVALUATION,
        "prediction_loss_only": _NO_EVALUATION,
        "include_for_metrics": _NO_EVALUATION,
        "batch_eval_metrics": _NO_EVALUATION,
        "bf16_full_eval": _NO_EVALUATION,
        "fp16_full_eval": _NO_EVALUATION,
        "load_best_model_at_end": "the loop keeps the best iterate by validation metric",
        "metric_for_best_model": "the loop keeps the best iterate by validation metric",
        "greater_is_better": "the loop keeps the best iterate by validation metric",
        "logging_strategy": _EVERY_STEP,
        "logging_steps": _EVERY_STEP,
        "logging_first_step": _EVERY_STEP,
        "logging_nan_inf_filter": "a loss that is not finite is an error",
        "include_num_input_tokens_seen": _EVERY_STEP,
        "push_to_hub": _NO_HUB,
        "hub_token": _NO_HUB,
        "hub_private_repo": _NO_HUB,
        "hub_model_id": _NO_HUB,
        "hub_strategy": _NO_HUB,
        "hub_always_push": _NO_HUB,
        "hub_revision": _NO_HUB,
        "remove_unused_columns": _OWN_BATCHES,
        "label_names": _OWN_BATCHES,
        "train_sampling_strategy": _OWN_BATCHES,
        "group_by_length": _OWN_BATCHES,
        "length_column_name": _OWN_BATCHES,
        "dataloader_drop_last": "every pair counts",
        "dataloader_pin_memory": _OWN_BATCHES,
        "dataloader_in_order": _OWN_BATCHES,
        "dataloader_multiprocessing_context": _OWN_BATCHES,
        "accelerator_config": _OWN_BATCHES,
        "auto_find_batch_size": "the batch size would depend on the machine",
        "average_tokens_across_devices": "losses are always averaged over the pairs of all devices",
        "label_smoothing_factor": "choose a smoother instead",
        "neftune_noise_alpha": "noise on the policy's inputs alone makes its margins meaningless",
        "use_liger_kernel": "log-probs come from Sera's own engine",
        "liger_kernel_config": "log-probs come from Sera's own engine",
        "torch_compile": _NOT_COMPILED,
        "torch_compile_backend": _NOT_COMPILED,
        "torch_compile_mode": _NOT_COMPILED,
        "fsdp": _NOT_SHARDED,
        "fsdp_config": _NOT_SHARDED,
        "deepspeed": _NOT_SHARDED,
        "parallelism_config": _NOT_SHARDED,
        "local_rank": "the launcher sets it",
    }
)

_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"report_to": "none", "disable_tqdm": True, "ddp_find_unused_parameters": False}
)

_FIXED: Mapping[str, Any] = MappingProxyType(
    {
        "save_strategy": "no",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "dataloader_drop_last": False,
        "dataloader_pin_memory": False,
    }
)

_COUNTS = ("per_device_train_batch_size", "gradient_accumulation_steps")
_NOT_NEGATIVE = ("weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps", "dataloader_num_workers")
_BELOW_ONE = ("adam_beta1", "adam_beta2")


def check_training_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same fields, numbers written as text (``1e-5`` in YAML) turned into numbers.

    Raises:
        ConfigError: a field TrainingArguments does not have, one that Sera sets itself, a value of the wrong type or
            range, or a learning rate of 0.
    """
    known = {field.name: field for field in fields(TrainingArguments) if field.init}
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name in OWNED:
            raise ConfigError(f"training.{name} cannot be set: {OWNED[name]}. Remove it.")
        if name not in known:
            raise ConfigError(f"training.{name} is unknown. {suggest(name, known.keys() - OWNED.keys())}")
        default = known[name].default
        checked[name] = value if default is MISSING else _typed(name, value, default)
    _check_ranges(checked)
    _check_words(checked)
    return checked


def build_arguments(values: Mapping[str, Any], *, output_dir: Path, seed: int) -> TrainingArguments:
    """TrainingArguments from a run's `training` fields, with Sera's own settings added.

    Raises:
        ConfigError: see `check_training_fields`, or a value TrainingArguments itself refuses.
    """
    given: dict[str, Any] = {**_DEFAULTS, "use_cpu": not _accelerated(), **check_training_fields(values), **_FIXED}
    try:
        # Seeds of numpy's global generator, which Trainer sets, end at 2^32 - 1.
        arguments = TrainingArguments(output_dir=str(output_dir), seed=seed % 2**32, **given)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        text = str(error).strip() or type(error).__name__
        raise ConfigError(
            f"transformers refuses the training fields: {text.rstrip('.')}. Change one of {', '.join(values)}."
        ) from error
    if arguments.n_gpu > 1:
        # Several devices need one process each: DataParallel would split records it does not understand.
        arguments._n_gpu = 1
    return arguments


def _accelerated() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def _typed(name: str, value: object, default: object) -> object:
    """`value` if it has the type of `default`, or can be read as a number where one is expected."""
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        raise ConfigError(f"training.{name} must be true or false, got {value!r}.")
    if not isinstance(default, int | float):
        return value
    number = value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ConfigError(f"training.{name} must be a number, got {value!r}.")
    if isinstance(default, int) and name != "warmup_steps":
        if number != int(number):
            raise ConfigError(f"training.{name} must be a whole number, got {value!r}.")
        return int(number)
    return number


def _check_ranges(values: Mapping[str, Any]) -> None:
    rate = values.get("learning_rate")
    if rate is not None and not 0 < rate < math.inf:
        raise ConfigError(f"training.learning_rate is {rate}: nothing would be trained. Give a positive number.")
    for name in (*_NOT_NEGATIVE, *_BELOW_ONE):
        if not 0 <= values.get(name, 0) < (1 if name in _BELOW_ONE else math.inf):
            below = " and below 1" if name in _BELOW_ONE else ""
            raise ConfigError(f"training.{name} must be at least 0{below}, got {values[name]}.")
    for name in _COUNTS:
        if values.get(name, 1) < 1:
            raise ConfigError(f"training.{name} must be at least 1, got {values[name]}.")
    epochs, steps = values.get("num_train_epochs", 1), values.get("max_steps", -1)
    if steps == 0 or (epochs <= 0 and steps < 0):
        raise ConfigError(
            f"training would take no step: num_train_epochs {epochs}, max_steps {steps}. Give a positive number."
        )


def _check_words(values: Mapping[str, Any]) -> None:
    for name, words in (("lr_scheduler_type", SchedulerType), ("optim", OptimizerNames)):
        known = [word.value for word in words]
        if name in values and str(values[name]) not in known:
            raise ConfigError(f"training.{name} has no value {values[name]!r}. {suggest(str(values[name]), known)}")
    wanted = values.get("report_to", "none")
    for tracker in [wanted] if isinstance(wanted, str) else list(wanted or ()):
        if tracker in {"none", "all"}:
            continue
        if tracker not in INTEGRATION_TO_CALLBACK:
            advice = suggest(tracker, INTEGRATION_TO_CALLBACK)
            raise ConfigError(f"training.report_to has no value {tracker!r}. {advice}")
        available = get_available_reporting_integrations()  # type: ignore[no-untyped-call]  # untyped in transformers
        if tracker not in available:
            raise ConfigError(
                f"training.report_to is {tracker}, whose package is not installed. Install it, or choose none: "
                "metrics.jsonl has every step in any case."
            )

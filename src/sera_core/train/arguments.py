"""`training:` fields: which ones a run may set, and the TrainingArguments they become."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import SchedulerType, TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)
from transformers.training_args import OptimizerNames

from sera_core.errors import ConfigError, suggest
from sera_core.train.owned import OWNED
from sera_core.train.precision import accelerated, check_precision

__all__ = ["NEUTRAL", "OWNED", "build_arguments", "check_training_fields", "normal_training_fields"]

NEUTRAL = frozenset(
    {
        "report_to",
        "run_name",
        "project",
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
        "disable_tqdm",
        "dataloader_num_workers",
        "dataloader_prefetch_factor",
        "dataloader_persistent_workers",
        "torch_empty_cache_steps",
    }
)
"""Fields that decide what is shown and how fast training goes, never its result."""

_DEFAULTS: Mapping[str, Any] = MappingProxyType({"report_to": "none", "disable_tqdm": True})

_FIXED: Mapping[str, Any] = MappingProxyType(
    {
        "save_strategy": "no",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "dataloader_drop_last": False,
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
        # Buffers never change, and ranks may need different numbers of forward passes: to send them would hang.
        "ddp_broadcast_buffers": False,
    }
)

# TrainingArguments leaves these unset, so that their defaults do not show their type.
_UNSET: Mapping[str, int | bool] = MappingProxyType(
    {
        "data_seed": 0,
        "torch_empty_cache_steps": 0,
        "dataloader_prefetch_factor": 0,
        "tf32": False,
        "disable_tqdm": False,
    }
)
_COUNTS = ("per_device_train_batch_size", "gradient_accumulation_steps")
_NOT_NEGATIVE = ("weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps", "dataloader_num_workers")
_BELOW_ONE = ("adam_beta1", "adam_beta2")


def check_training_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same fields, numbers written as text (``1e-5`` in YAML) turned into numbers, those that are null left out.

    Null stands for the default: it takes back what a preset sets.

    Raises:
        ConfigError: a field TrainingArguments does not have, one that Sera sets itself or that could not act, a value
            of the wrong type or range, or a learning rate of 0.
    """
    known = {field.name: field for field in fields(TrainingArguments) if field.init}
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name in OWNED:
            raise ConfigError(f"training.{name} cannot be set: {OWNED[name]}. Remove it.")
        if name not in known:
            raise ConfigError(f"training.{name} is unknown. {suggest(name, known.keys() - OWNED.keys())}")
        default = _UNSET.get(name, known[name].default)
        if value is not None:
            checked[name] = value if default is MISSING else _typed(name, value, default)
    _check_ranges(checked)
    _check_without_effect(checked)
    _check_words(checked)
    return checked


def normal_training_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """What of the `training` fields decides the trained model, in one spelling and order: the part for a cache key.

    Checked as by `check_training_fields`; the fields of `NEUTRAL` are left out, for they change how training is shown
    or how fast it is, not what comes out. ``1e-5`` and ``"1e-5"`` are equal here, and so are 1 and 1.0 where a field
    holds a real number. Defaults are not filled in.

    Raises:
        ConfigError: see `check_training_fields`.
    """
    checked = check_training_fields(values)
    return {name: checked[name] for name in sorted(checked.keys() - NEUTRAL)}


def build_arguments(values: Mapping[str, Any], *, output_dir: Path, seed: int) -> TrainingArguments:
    """TrainingArguments from a run's `training` fields, with Sera's own settings added.

    Raises:
        ConfigError: see `check_training_fields`, or a value TrainingArguments itself refuses.
    """
    given: dict[str, Any] = {**_DEFAULTS, "use_cpu": not accelerated(), **check_training_fields(values), **_FIXED}
    try:
        # Seeds of numpy's global generator, which Trainer sets, end at 2^32 - 1.
        arguments = TrainingArguments(output_dir=str(output_dir), seed=seed % 2**32, **given)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        text = str(error).strip() or type(error).__name__
        raise ConfigError(
            f"transformers refuses the training fields: {text.rstrip('.')}. Change one of {', '.join(values)}."
        ) from error
    check_precision("float32", given)
    # An inherited environment variable could ask for another precision than the fields do.
    arguments.mixed_precision = "fp16" if arguments.fp16 else "bf16" if arguments.bf16 else "no"
    if arguments.n_gpu > 1:
        # Several devices need one process each: DataParallel would split records it does not understand.
        arguments._n_gpu = 1
    return arguments


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
    if not math.isfinite(number):
        raise ConfigError(f"training.{name} must be a finite number, got {value}.")
    if isinstance(default, int) and name != "warmup_steps":
        if number != int(number):
            raise ConfigError(f"training.{name} must be a whole number, got {value!r}.")
        return int(number)
    return float(number)


def _check_ranges(values: Mapping[str, Any]) -> None:
    rate = values.get("learning_rate")
    if rate is not None and rate <= 0:
        raise ConfigError(f"training.learning_rate is {rate:g}: nothing would be trained. Give a positive number.")
    for name in (*_NOT_NEGATIVE, *_BELOW_ONE):
        if not 0 <= values.get(name, 0) < (1 if name in _BELOW_ONE else math.inf):
            below = " and below 1" if name in _BELOW_ONE else ""
            raise ConfigError(f"training.{name} must be at least 0{below}, got {values[name]:g}.")
    for name in _COUNTS:
        if values.get(name, 1) < 1:
            raise ConfigError(f"training.{name} must be at least 1, got {values[name]}.")
    epochs, steps = values.get("num_train_epochs", 1), values.get("max_steps", -1)
    if steps == 0 or (epochs <= 0 and steps < 0):
        raise ConfigError(
            f"training would take no step: num_train_epochs {epochs:g}, max_steps {steps}. Give a positive number."
        )


def _check_without_effect(values: Mapping[str, Any]) -> None:
    """Refuse fields that others make meaningless."""
    if values.get("max_steps", -1) > 0 and "num_train_epochs" in values:
        raise ConfigError(
            f"training.max_steps is {values['max_steps']}, so training.num_train_epochs "
            f"({values['num_train_epochs']:g}) would be ignored. Remove one of them, or set it to null where a preset "
            "gives it."
        )
    if values.get("gradient_checkpointing_kwargs") and not values.get("gradient_checkpointing", False):
        raise ConfigError(
            "training.gradient_checkpointing_kwargs has no effect without training.gradient_checkpointing. "
            "Set that to true, or remove the options."
        )
    if (values.get("gradient_checkpointing_kwargs") or {}).get("use_reentrant"):
        raise ConfigError(
            "training.gradient_checkpointing_kwargs has use_reentrant: true, which gives an adapter no gradient. "
            "Remove it: checkpointing without re-entry gives the same gradients."
        )
    if not values.get("dataloader_num_workers", 0):
        for name in ("dataloader_persistent_workers", "dataloader_prefetch_factor"):
            if values.get(name):
                raise ConfigError(
                    f"training.{name} has no effect without training.dataloader_num_workers. Set that to 1 or more, "
                    "or remove it."
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

"""The fields of TrainingArguments that a run may not set, and why."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_SERA_WRITES = "Sera decides where and when it saves"
_NO_EVALUATION = "Sera evaluates after each iteration, with its own judges"
_EVERY_STEP = "Sera records every optimiser step"
_NO_HUB = "a run writes local folders only; upload the final model afterwards"
_OWN_BATCHES = "Sera builds the batches of pairs itself"
_NOT_SHARDED = "a run does not shard a model; where memory is short, train an adapter (lora)"
_NOT_COMPILED = "compiled layers gained 1 to 3 % on a CPU, too little for what can go wrong; they are not supported"
_LAUNCHER = "the launcher says which process this is"
_OWN_RANKS = "Sera connects the processes itself: nccl between GPUs, gloo between CPUs"
_SAME_SUMS = "Sera sets how gradients are summed over processes, so that it does not differ between runs"
_OWN_OUTPUT = "Sera reports progress and problems itself"

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
        "average_tokens_across_devices": "losses are averaged over pairs",
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
        "local_rank": _LAUNCHER,
        "ddp_find_unused_parameters": _SAME_SUMS,
        "ddp_bucket_cap_mb": _SAME_SUMS,
        "ddp_broadcast_buffers": _SAME_SUMS,
        "ddp_static_graph": _SAME_SUMS,
        "ddp_backend": _OWN_RANKS,
        "ddp_timeout": _OWN_RANKS,
        "log_level": _OWN_OUTPUT,
        "log_level_replica": _OWN_OUTPUT,
        "log_on_each_node": _OWN_OUTPUT,
        "skip_memory_metrics": "memory is not among the recorded metrics",
        "use_cache": "training has no use for a cache, and the saved model keeps its own setting",
        "debug": "a loss or gradient that is not finite is an error that names its pairs",
        "use_cpu": "scoring and generation would still use the GPU; hide it: CUDA_VISIBLE_DEVICES= before the command",
    }
)

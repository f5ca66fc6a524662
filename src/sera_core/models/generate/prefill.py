"""Reading a prompt once for all its samples."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


def shared_prefill(policy: PreTrainedModel, ids: Tensor, mask: Tensor, rows: Tensor) -> DynamicCache | None:
    """Keys and values of p left-padded prompts, repeated for b rows; None where the model keeps another kind of cache.

    `ids` and `mask` are int64 [p, l]; `rows` int64 [b] names each row's prompt. The last prompt token is left out:
    generation reads it and predicts the first new token from it. Call without gradient.
    """
    if ids.shape[1] < 2:
        return None
    body: Any = policy.base_model
    arguments: dict[str, Any] = {"attention_mask": mask[:, :-1], "use_cache": True}
    if "position_ids" in inspect.signature(body.forward).parameters:
        arguments["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, :-1]
    cache = getattr(body(input_ids=ids[:, :-1], **arguments), "past_key_values", None)
    # Layers derived from these may hold more than keys and values, which selecting rows would leave behind.
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    if not isinstance(cache, DynamicCache) or not all(type(layer) in plain for layer in cache.layers):
        return None
    cache.batch_select_indices(rows)
    return cache

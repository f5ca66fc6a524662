"""Log-probs of responses through the store: what is known is read, what is missing is computed and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sera_core.errors import ModelError
from sera_core.meter import Meter
from sera_core.models.logps import Group, default_budget, group_logps
from sera_core.models.store import LogProbStore, response_key
from sera_core.protocols import Progress
from sera_core.records import Floats, Response


def score_responses(
    model_provider: Callable[[], nn.Module],
    scorer: str,
    responses: Sequence[Response],
    template: str,
    store: LogProbStore,
    *,
    token_budget: int | None = None,
    chunk: int = 128,
    progress: Progress | None = None,
    meter: Meter | None = None,
) -> tuple[Floats, NDArray[np.int64]]:
    """Summed log-probs float64 [n] and lengths int64 [n] of n responses, in input order, without gradient.

    `token_budget` counts tokens per forward, padding included; None takes the device's default. `model_provider` gives
    the model in eval mode; it is called once, and only when the store misses something.
    `scorer` identifies that model (its weights hash), `template` is the hash of the chat template behind the ids.
    Equal responses are computed once. Every `chunk` responses are stored as soon as they are done, so that a killed
    process loses one chunk. `progress` is told (known, total) over distinct responses; `meter` counts what was
    computed and what was known.

    Raises:
        ModelError: see `group_logps`; or the device's memory runs out. StoreError: see `LogProbStore`.
    """
    keys = [response_key(template, response.prompt.ids, response.ids) for response in responses]
    distinct = dict(zip(keys, responses, strict=True))
    sums, _, found = store.get(scorer, list(distinct))
    known = {key: float(total) for key, total, there in zip(distinct, sums, found, strict=True) if there}
    missing = [key for key in distinct if key not in known]
    meter = meter or Meter()
    meter.responses(scorer, missing, known)
    if missing:
        model = model_provider()
        for start in range(0, len(missing), chunk):
            if progress is not None:
                progress(len(known), len(distinct))
            known |= _compute(model, scorer, missing[start : start + chunk], distinct, store, token_budget, meter)
    if progress is not None:
        progress(len(distinct), len(distinct))
    return (
        np.array([known[key] for key in keys], dtype=np.float64),
        np.array([len(response.ids) for response in responses], dtype=np.int64),
    )


def _compute(
    model: nn.Module,
    scorer: str,
    keys: Sequence[bytes],
    responses: dict[bytes, Response],
    store: LogProbStore,
    token_budget: int | None,
    meter: Meter,
) -> dict[bytes, float]:
    """Sums of the responses named by `keys`, computed and stored. What another process stored first counts."""
    by_prompt: dict[bytes, list[bytes]] = {}
    for key in keys:
        by_prompt.setdefault(responses[key].prompt.ids.tobytes(), []).append(key)
    groups = [
        Group(responses[members[0]].prompt.ids, tuple(responses[key].ids for key in members))
        for members in by_prompt.values()
    ]
    order = [key for members in by_prompt.values() for key in members]
    budget = token_budget or default_budget(next(model.parameters()).device)
    try:
        with torch.inference_mode():
            result = group_logps(model, groups, token_budget=budget)
    except (ModelError, torch.OutOfMemoryError) as error:
        first, last = (responses[order[end]].prompt.id for end in (0, -1))
        name = getattr(model, "name_or_path", "") or type(model).__name__
        what = f", counted from 0: {error}" if isinstance(error, ModelError) else f": {_memory_advice(groups, budget)}"
        raise ModelError(f"Scoring with {name} the responses to prompts {first!r} ... {last!r}{what}") from error
    meter.forward(result.attention, result.forwarded_tokens, result.useful_tokens)
    stored = store.put(scorer, order, result.sums.cpu().numpy(), result.lengths.cpu().numpy().astype(np.int32))
    return dict(zip(order, stored.tolist(), strict=True))


def _memory_advice(groups: Sequence[Group], budget: int) -> str:
    longest = max(len(group.prompt) + len(response) for group in groups for response in group.responses)
    advice = (
        f"Lower scoring.token_budget (now {budget}), for example to {max(budget // 2, longest)}"
        if budget > longest
        else "Shorten tokens.max_prompt_tokens or tokens.max_response_tokens"
    )
    return (
        f"the device ran out of memory with {budget} tokens per forward; the longest response has {longest} "
        f"tokens, prompt included. {advice}, or set policy.dtype to bfloat16."
    )

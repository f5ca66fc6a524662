"""Measuring: every log-prob the scorers asked for, computed once, aligned with the responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sera_core.errors import ModelError
from sera_core.protocols import Needs
from sera_core.records import Floats, IterateLogps, Response, ScoringLogps

# (model name in the log-prob store, responses) -> summed log-probs float64 [n]
Measure = Callable[[str, Sequence[Response]], Floats]


def measure(
    responses: Sequence[Response],
    needs: Needs,
    iterates: Sequence[tuple[int, str, str]],
    initial: str,
    logps_of: Measure,
) -> ScoringLogps:
    """Log-probs of n responses under every model that `needs` names.

    Args:
        responses: what to measure.
        needs: of the scorer.
        iterates: (iteration, model, its training reference) of the trained iterates, newest first.
        initial: the initial policy.
        logps_of: scores responses under a model, through the store.

    Raises:
        ModelError: a log-prob is not finite.
    """
    lengths: NDArray[np.int64] = np.array([len(response.ids) for response in responses], dtype=np.int64)
    history = tuple(
        IterateLogps(
            iteration,
            _finite(logps_of(model, responses), model),
            # A scorer that does not read references gets not-a-number there, so that a slip cannot pass unseen.
            _finite(logps_of(reference, responses), reference) if needs.reference else np.full(len(responses), np.nan),
        )
        for iteration, model, reference in iterates[: needs.history]
    )
    first = _finite(logps_of(initial, responses), initial) if needs.initial else None
    return ScoringLogps(lengths=lengths, iterates=history, initial=first)


def _finite(logps: Floats, model: str) -> Floats:
    bad = np.flatnonzero(~np.isfinite(logps))
    if bad.size:
        raise ModelError(
            f"Log-prob of response {bad[0]} under model {model} is {logps[bad[0]]}, expected a finite number."
        )
    return logps


def pack(logps: ScoringLogps) -> dict[str, NDArray[Any]]:
    """Named arrays for a safetensors file; `unpack` is the inverse."""
    arrays: dict[str, NDArray[Any]] = {"lengths": logps.lengths}
    if logps.initial is not None:
        arrays["initial"] = logps.initial
    for order, iterate in enumerate(logps.iterates):
        arrays[f"{order}.{iterate.iteration}.policy"] = iterate.policy
        arrays[f"{order}.{iterate.iteration}.reference"] = iterate.reference
    return arrays


def unpack(arrays: Mapping[str, NDArray[Any]]) -> ScoringLogps:
    """What `pack` packed."""
    heads = sorted(
        {name.rpartition(".")[0] for name in arrays if "." in name}, key=lambda head: int(head.split(".")[0])
    )
    return ScoringLogps(
        lengths=arrays["lengths"],
        initial=arrays.get("initial"),
        iterates=tuple(
            IterateLogps(int(head.split(".")[1]), arrays[f"{head}.policy"], arrays[f"{head}.reference"])
            for head in heads
        ),
    )

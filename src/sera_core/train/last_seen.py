"""What training measured of each pair when it saw it last: evidence of margins, weights and smoothing, pair by pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sera_core.candidates import GENERATED
from sera_core.records import Pair

if TYPE_CHECKING:
    from sera_core.train.step import PairLosses

_MEASURED = ("margin", "confidence", "weight", "flip")


def pair_rows(indices: Tensor, result: PairLosses, weights: Tensor) -> Tensor:
    """One micro-batch's b pairs, float64 [b, 5] on the CPU: number in the training set, then `_MEASURED`.

    The margin is the objective's, before transforms. `indices` int64 [b] are on the CPU.
    """
    measured = (result.base_margins, result.confidences, weights, result.flip)
    values = torch.stack([column.detach().to(result.losses.dtype) for column in measured]).to("cpu", torch.float64)
    return torch.cat([indices.to(torch.float64)[None], values]).T


class LastSeen:
    """The newest measurement of each of `pairs` training pairs, nan until it is seen. Survives a checkpoint."""

    def __init__(self, pairs: int) -> None:
        self._values = torch.full((len(_MEASURED), pairs), torch.nan, dtype=torch.float64)

    def put(self, rows: Tensor) -> None:
        """Keep the `pair_rows` of k different pairs, float64 [k, 5]."""
        self._values[:, rows[:, 0].long()] = rows[:, 1:].T

    def columns(self, pairs: tuple[Pair, ...]) -> dict[str, Any]:
        """Columns by name, a row per training pair in its order."""
        return {
            "pair": [pair.id for pair in pairs],
            **{name: values.numpy() for name, values in zip(_MEASURED, self._values, strict=True)},
            "flipped": [pair.flipped for pair in pairs],
            "origin": [GENERATED if pair.source == GENERATED else "offline" for pair in pairs],
        }

    def state_dict(self) -> dict[str, Any]:
        """All measurements; every float64 survives JSON exactly, nan included."""
        return {"values": self._values.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._values = torch.tensor(state["values"], dtype=torch.float64)

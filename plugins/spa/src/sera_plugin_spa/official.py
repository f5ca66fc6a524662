"""Self-refinement as the code released with the paper does it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from sera_core.errors import ConfigError
from sera_core.options import require_whole
from sera_core.protocols import Needs
from sera_core.records import Floats, PairBatch, Smoothed
from sera_plugin_spa.options import require_refinement
from sera_plugin_spa.refinement import split

if TYPE_CHECKING:
    from torch import Tensor

_NAME = "smoother 'spa_official_code'"
# Half the spacing of float32 below 1: a confidence that rounded to 1 still has a finite margin.
_CLEARANCE = 2.0**-25
_SMALLEST = float(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class OfficialCodeRefinement:
    """Smooths doubtful pairs as the code released with SPA does; `spa` does what the paper says.

    Per micro-batch, in order: its mean margin enters a ring of the last `window` means; tau is the mean of the two
    entries at floor(window x share) and the one after it in the sorted ring, and 0 until the ring is full; pairs of
    the micro-batch with a margin of at most tau are flagged. The ring fills during the warm-up, when nothing is
    flagged. A margin is logit(confidence), for dpo beta h, read up to about 17. The released code keeps one ring per
    process; here micro-batches of all processes pass through one, as a single process would see them. That the mean
    enters before tau is taken is this project's reading of the order within a step.

    Options: `alpha` in [0, 1], the weight of the flipped label. `share` in [0, 1), where in the ring tau lies; 0 does
    not switch refinement off. `extrapolation` >= 0: the released multiplier of the policy's logits less 1. `warmup` in
    [0, 1], the share of optimiser steps before refinement acts; 1 means never. `window` >= 2, entries of the ring.
    `micro_batch` >= 1, how many consecutive pairs one entry averages; the last entry of a step may have fewer.

    Raises:
        ConfigError: an option out of range, or a ring too small for its share.

    Source: the repository kingdy2002/SPA of Kim 2024 (SPA).
    """

    alpha: float = 0.1
    share: float = 0.1
    extrapolation: float = 0.0
    warmup: float = 0.2
    window: int = 50
    micro_batch: int = 1
    ring: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_refinement(
            _NAME, alpha=self.alpha, share=self.share, extrapolation=self.extrapolation, warmup=self.warmup
        )
        require_whole(_NAME, "window", self.window, low=2, typical="50")
        require_whole(_NAME, "micro_batch", self.micro_batch, low=1, typical="1")
        if self._place() + 1 >= self.window:
            raise ConfigError(
                f"{_NAME}: option share = {self.share!r} leaves no entry above it in a ring of {self.window}. "
                "Lower share, or raise window."
            )

    @property
    def needs(self) -> Needs:
        """Confidences of the whole effective batch, those of the extrapolated policy."""
        return Needs(extrapolation=self.extrapolation, whole_batch=True)

    @classmethod
    def neutral(cls) -> Self:
        """The setting that changes nothing: alpha 0."""
        return cls(alpha=0.0)

    def flip_weights(self, confidence: Tensor, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """(1 - alpha z, alpha z), [b] each, without gradient, z the flags; the ring moves on."""
        both = self.smooth(confidence, batch)
        return both.keep, both.flip

    def smooth(self, confidence: Tensor, batch: PairBatch) -> Smoothed:
        """The split of b pairs with `threshold` (the last tau), `flagged` (the share z = 1) and `refining` (1 or 0).

        `confidence` [b] in [0, 1], in the order of training. The ring moves on.
        """
        margins = _margins(confidence)
        acts = batch.progress >= self.warmup
        flags = np.zeros(len(margins), dtype=np.bool_)
        threshold = 0.0
        for start in range(0, len(margins), self.micro_batch):
            part = slice(start, start + self.micro_batch)
            self.ring[:] = [*self.ring, float(margins[part].mean())][-self.window :]
            threshold = self._threshold()
            flags[part] = acts & (margins[part] <= threshold)
        return split(confidence, self.alpha, flags, threshold, acts=acts)

    def state_dict(self) -> dict[str, Any]:
        """The mean margins in the ring, oldest first."""
        return {"ring": list(self.ring)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the ring."""
        self.ring[:] = state["ring"]

    def _place(self) -> int:
        return math.floor(self.window * self.share)

    def _threshold(self) -> float:
        if len(self.ring) < self.window:
            return 0.0
        low, high = sorted(self.ring)[self._place() : self._place() + 2]
        return (low + high) / 2


def _margins(confidence: Tensor) -> Floats:
    xi = confidence.detach().cpu().to(torch.float64).clamp(_SMALLEST, 1 - _CLEARANCE)
    margins: NDArray[np.float64] = torch.logit(xi).numpy()
    return margins

"""Self-refinement: the labels the policy doubts most are smoothed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch

from sera_core.options import refuse_unread, require_choice, require_number, require_whole
from sera_core.protocols import Needs
from sera_core.records import Floats, PairBatch, Smoothed
from sera_plugin_spa.options import require_refinement

if TYPE_CHECKING:
    from torch import Tensor

_NAME = "smoother 'spa'"
_WINDOW, _REFRESH = 50, 0.2


@dataclass(frozen=True)
class SelfRefinement:
    """Smooths the pairs in which the policy is least confident: loss (1 - alpha z) L(h) + alpha z L(-h).

    z is 1 where the confidence is below tau, the `share`-quantile of confidences, and 0 elsewhere. Confidences are
    those of the policy extrapolated away from its reference, which tell a doubtful label from one the policy has
    merely not learnt yet; the core computes them.

    Options: `alpha` in [0, 1], the weight of the flipped label. `share` in [0, 1), the paper's K; 0 flags nothing.
    `extrapolation` >= 0, the paper's lambda; 0 reads the policy's own confidence. `warmup` in [0, 1], the share of
    optimiser steps before refinement acts; 1 means never. `threshold_scope` says which confidences tau is a quantile
    of: ``window``, the most recent `window` samples, those of the step included and counted first, fewer before so
    many were seen; ``batch``, the effective batch; ``dataset``, the whole training set, measured before the first step
    and again every `refresh` epochs, each pair keeping its z in between. There refinement begins with the first
    measurement after the warm-up.

    Raises:
        ConfigError: an option out of range, or one that `threshold_scope` does not read.

    Source: Kim 2024 (SPA), Eq. 9-12; the window: Appendix B.4.
    """

    alpha: float = 0.1
    share: float = 0.1
    extrapolation: float = 0.5
    warmup: float = 0.2
    threshold_scope: Literal["window", "batch", "dataset"] = "window"
    window: int = _WINDOW
    refresh: float = _REFRESH
    recent: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_refinement(
            _NAME, alpha=self.alpha, share=self.share, extrapolation=self.extrapolation, warmup=self.warmup
        )
        require_choice(_NAME, "threshold_scope", self.threshold_scope, ("window", "batch", "dataset"))
        if self.threshold_scope != "window":
            refuse_unread(_NAME, "window", self.window, _WINDOW, "threshold_scope: window")
        if self.threshold_scope != "dataset":
            refuse_unread(_NAME, "refresh", self.refresh, _REFRESH, "threshold_scope: dataset")
        require_whole(_NAME, "window", self.window, low=1, typical="50")
        expected = "a finite number of epochs > 0"
        require_number(_NAME, "refresh", self.refresh, low=math.ulp(0.0), expected=expected)

    @property
    def needs(self) -> Needs:
        """Confidences of the whole effective batch or training set, those of the extrapolated policy."""
        if self.threshold_scope == "dataset":
            return Needs(extrapolation=self.extrapolation, dataset_every=self.refresh, dataset_from=self.warmup)
        return Needs(extrapolation=self.extrapolation, whole_batch=True)

    @classmethod
    def neutral(cls) -> Self:
        """The setting that changes nothing: alpha 0."""
        return cls(alpha=0.0)

    def flip_weights(self, confidence: Tensor, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """(1 - alpha z, alpha z), [b] each, without gradient; the window moves on."""
        split = self.smooth(confidence, batch)
        return split.keep, split.flip

    def smooth(self, confidence: Tensor, batch: PairBatch) -> Smoothed:
        """The split of b pairs with `threshold` (tau), `flagged` (the share z = 1) and `refining` (1 or 0).

        `confidence` [b] in [0, 1]. The window moves on.
        """
        values = confidence.detach().cpu().to(torch.float64).numpy()
        threshold = float(np.quantile(self._in_scope(values), self.share))
        acts = batch.progress >= self.warmup
        # Of a step larger than the window, a pair outside it may lie below the smallest one inside.
        doubtful = (acts and self.share > 0) & (values < threshold)  # Kim 2024 (SPA), Eq. 9
        return split(confidence, self.alpha, doubtful, threshold, acts=acts)

    def state_dict(self) -> dict[str, Any]:
        """The confidences in the window, oldest first."""
        return {"window": list(self.recent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the window."""
        self.recent[:] = state["window"]

    def _in_scope(self, values: Floats) -> Floats:
        if self.threshold_scope != "window":
            return values
        self.recent[:] = [*self.recent, *values.tolist()][-self.window :]
        return np.asarray(self.recent, dtype=np.float64)


def split(confidence: Tensor, alpha: float, flags: Any, threshold: float, *, acts: bool) -> Smoothed:  # noqa: ANN401
    """(1 - alpha z, alpha z) for flags z bool [b], like `confidence` [b], and what is reported about them."""
    z = torch.from_numpy(np.asarray(flags)).to(confidence.device, confidence.dtype)
    flip = alpha * z
    metrics = {"threshold": threshold, "flagged": float(np.mean(flags)), "refining": float(acts)}
    return Smoothed(1 - flip, flip, metrics)  # Kim 2024 (SPA), Eq. 10

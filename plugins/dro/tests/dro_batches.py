"""Small batches of statistics for tests."""

import math

import torch

from sera_core.records import BatchStats


def stats_of(confidences, *, losses=None, progress=0.0, dtype=torch.float64, beta=1.0):
    """The statistics that the dpo objective gives for these confidences; infinite margins and losses are cut."""
    xi = torch.as_tensor(confidences, dtype=dtype)
    margins = torch.logit(xi.double().clamp(1e-12, 1 - 1e-12)).to(dtype) / beta
    own = -torch.log(xi.clamp_min(1e-30)) if losses is None else torch.as_tensor(losses, dtype=dtype)
    return BatchStats(margins, xi, own, torch.full_like(xi, math.nan), progress)


def numbers(metrics):
    return {name: float(value) for name, value in metrics.items()}

"""Checks that a training run is the run it claims to be: reference, dropout, finiteness, movement."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sera_core.errors import ModelError


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability inside `model` to 0: dropout layers and the rates attention layers keep.

    The configuration saved with the model keeps its values.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def check_trainable(model: nn.Module) -> None:
    """Raise ModelError when no parameter is trainable."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            f"{type(model).__name__} has no trainable parameter: every one of them is frozen. "
            "Unfreeze the model before training, or train an adapter (lora)."
        )


def check_margins_zero(margins: Tensor, ids: Sequence[str]) -> None:
    """Raise ModelError unless all margins [b] are exactly 0, as they are while the policy is its own reference."""
    margins = margins.detach()
    off = torch.nonzero(margins).flatten().tolist()
    if off:
        worst = max(off, key=lambda i: abs(float(margins[i])))
        raise ModelError(
            f"Before the first update the policy is its own reference, so every margin must be exactly 0; "
            f"pair {ids[worst]!r} has {float(margins[worst]):.6g} ({len(off)} of {len(ids)} pairs are off). "
            "Likely causes: dropout is active in the policy; kernels are not deterministic; the adapter does not start "
            "neutral; or the weights changed after the reference was taken."
        )


def check_reference(
    side: str, stored: Tensor, live: Tensor, lengths: Tensor, ids: Sequence[str], dtype: torch.dtype
) -> None:
    """Raise ModelError unless stored reference log-probs [b] equal live ones up to rounding.

    Allowed difference: 1e-4 |live| + 1e-3 in float32 and float64 (what batch composition changes); in half precisions
    2e-2 |live| + 2e-2 per token, whose rounding is that much coarser.
    """
    exact = dtype in (torch.float32, torch.float64)
    allowed = 1e-4 * live.abs() + 1e-3 if exact else 2e-2 * live.abs() + 2e-2 * lengths
    off = torch.nonzero((stored - live).abs() > allowed).flatten().tolist()
    if off:
        worst = max(off, key=lambda i: abs(float(stored[i] - live[i])))
        raise ModelError(
            f"The stored reference does not belong to these weights: log p({side}) of pair {ids[worst]!r} is stored as "
            f"{float(stored[worst]):.6g}, and the policy, which should still equal its reference, gives "
            f"{float(live[worst]):.6g} ({len(off)} of {len(ids)} pairs are off). "
            "Measure the reference again with the weights training starts from."
        )


def check_finite(losses: Tensor, step: int, ids: Sequence[str]) -> None:
    """Raise ModelError naming `step` and the pairs unless all losses [b] are finite."""
    if bool(torch.isfinite(losses).all()):
        return
    bad = [ids[i] for i in torch.nonzero(~torch.isfinite(losses)).flatten().tolist()]
    raise ModelError(
        f"The loss is not finite at optimiser step {step} for pairs {', '.join(map(repr, bad[:8]))}"
        f"{' and more' if len(bad) > 8 else ''}. Lower training.learning_rate, train in float32, or drop these pairs."
    )


def sample_parameters(model: nn.Module) -> list[Tensor]:
    """Copies of up to 4096 leading values of every parameter, to see later whether any moved."""
    return [p.detach().flatten()[:4096].to("cpu", copy=True) for p in model.parameters()]


def check_moved(before: Sequence[Tensor], model: nn.Module) -> None:
    """Raise ModelError when no parameter sampled in `before` differs from the model's now."""
    if all(torch.equal(old, new) for old, new in zip(before, sample_parameters(model), strict=True)):
        raise ModelError(
            "No parameter moved during training. The gradient was zero throughout (a hinge loss with every margin "
            "satisfied, or a reweighter that gave every pair weight 0, as a radius does that moves all mass to the end "
            "of the support: lower it), or the learning rate was: a warm-up as long as the run leaves it at 0. Check "
            "training.learning_rate, training.warmup_steps and the number of pairs. In half precision, updates too "
            "small for policy.dtype end the same way: train in float32."
        )

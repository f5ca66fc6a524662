"""Attention whose scores are capped, as Gemma 2 was trained: SDPA kernels have no room for the cap."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from transformers import PreTrainedConfig


def score_cap(config: PreTrainedConfig) -> float | None:
    """The cap on a family's attention scores, None where they have none."""
    cap = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return None if cap is None else float(cap)


def capped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, cap: float, scale: float, dropout: float = 0.0
) -> Tensor:
    """Attention [b, h, m, d] of queries [b, h, m, d] to keys and values [b, h, n, d]; probabilities are float32.

    Scores are ``cap * tanh(q k' scale / cap)``. `mask` [..., m, n] is bool, True where a query sees a key. Without one
    the i-th query sees the first i keys, and a single query all of them, as in transformers' SDPA.
    """
    if mask is None:
        every = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        mask = every.tril() if len(every) > 1 else every
    scores = torch.tanh(query @ key.transpose(2, 3) * (scale / cap)) * cap
    # A row that sees nothing, of padding, must not become nan.
    hidden = torch.finfo(scores.dtype).min
    weights = scores.masked_fill(~mask, hidden).softmax(-1, dtype=torch.float32).to(value.dtype)
    return drop(weights, dropout) @ value

"""Attention inside a pack on a GPU: one FlexAttention kernel that skips the blocks nobody sees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers.integrations.flex_attention import flex_attention_forward

from sera_core.models.attention import Layout, owners, packed_attention

# The name under which transformers finds the attention below.
FLEX = "packed_flex"


def flex_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,  # noqa: ANN401  # transformers' interface
) -> tuple[Tensor, None]:
    """Attention of query [1, heads, L, d] as transformers asks for it: output [1, L, heads, d]."""
    layout: Layout | None = kwargs.pop("packed_layout", None)
    if layout is None or kwargs.get("dropout"):
        # FlexAttention has no dropout.
        return packed_attention(
            module, query, key, value, attention_mask, scaling=scaling, packed_layout=layout, **kwargs
        )
    mask = layout.once(kwargs.pop("sliding_window", None), _block_mask)
    return flex_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)[0], None


def _block_mask(layout: Layout, window: int | None) -> BlockMask:
    """Which blocks of the pack see which."""
    group, owner, position = (values.to(layout.device) for values in _tokens(layout))
    tokens = len(group)

    def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = position[query] - position[key]
        own = (group[query] == group[key]) & ((owner[key] == 0) | (owner[key] == owner[query]))
        inside = (own | (group[key] < 0)) & (distance >= 0)
        return inside if window is None else inside & (distance < window)

    # Compiled it never holds tokens x tokens; a CPU is for tests only.
    make: Any = torch.compile(create_block_mask) if layout.device.type == "cuda" else create_block_mask
    found: BlockMask = make(seen, None, None, tokens, tokens, device=layout.device.type)
    return found


def _tokens(layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Group, owner (0 for a prompt) and position of every token; what opens all prompts is group -1."""
    opening = layout.opening
    sizes = torch.tensor([opening, *(shape.tokens for shape in layout.shapes)])
    group = torch.repeat_interleave(torch.arange(-1, len(layout.shapes)), sizes)
    owner, position = owners(layout.shapes, opening)
    return group, torch.cat([torch.zeros(opening).int(), owner]), torch.cat([torch.arange(opening).int(), position])

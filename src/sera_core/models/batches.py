"""Prompts with their responses, and the batches of tokens that go through a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sera_core.errors import ModelError
from sera_core.models.attention import Layout
from sera_core.records import Ids


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """One prompt, int32 [p] with p >= 1, and one or more responses to it, int32 [r] with r >= 1 each."""

    prompt: Ids
    responses: tuple[Ids, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """b rows of L tokens that hold n responses with T tokens in all, on one device.

    `ids` int64 [b, L]. Either `mask` int64 [b, L] marks what is no padding, or the one row has none, `layout` says
    which token sees which, and `positions` int64 [1, L] where each stands in its dialogue. `places` int64 [T] are the
    flat positions whose logits predict a response token, `targets` int64 [T] those tokens, response by response;
    `responses` numbers the n responses among all that were asked for, and `lengths` are their tokens. `useful` counts
    tokens that are no padding.
    """

    ids: Tensor
    mask: Tensor | None
    layout: Layout | None
    positions: Tensor | None
    places: Tensor
    targets: Tensor
    responses: tuple[int, ...]
    lengths: tuple[int, ...]
    useful: int

    def arguments(self) -> dict[str, Any]:
        """What a model takes for these rows."""
        given: dict[str, Any] = {"input_ids": self.ids, "attention_mask": self.mask, "use_cache": False}
        if self.layout is not None:
            # A mask of four dimensions is passed through as it is, so that nobody builds one of L x L.
            given["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.ids.device)
            given |= {"position_ids": self.positions, "packed_layout": self.layout}
        # Rows padded on the right have the positions that a family gives them itself, not always from 0.
        return given


def check_groups(groups: Sequence[Group], vocabulary: int) -> None:
    """Refuse what has no log-probability.

    Raises:
        ModelError: an empty prompt or response, or an id outside the vocabulary.
    """
    index = 0
    for number, group in enumerate(groups):
        if len(group.prompt) == 0:
            raise ModelError(
                f"Group {number} has an empty prompt. The first response token needs at least one token before it; "
                "give a prompt, or a tokenizer that has a BOS token."
            )
        low, high = int(group.prompt.min()), int(group.prompt.max())
        for response in group.responses:
            if len(response) == 0:
                raise ModelError(f"Response {index} is empty: it has no log-probability. Drop it before scoring.")
            least, most = min(low, int(response.min())), max(high, int(response.max()))
            if least < 0 or most >= vocabulary:
                raise ModelError(
                    f"Response {index} or its prompt has token id {least if least < 0 else most}; the model knows ids "
                    f"0 to {vocabulary - 1}. Tokenise with the tokenizer of this model."
                )
            index += 1


def response_sums(batches: Sequence[Batch], token_values: Tensor) -> Tensor:
    """Sums [n] over each response's tokens of values [T], T over all `batches` in order; n in the order asked for."""
    lengths = torch.tensor([length for batch in batches for length in batch.lengths])
    inside = (torch.arange(int(lengths.max())) < lengths[:, None]).to(token_values.device)
    empty = torch.zeros(inside.shape, dtype=token_values.dtype, device=token_values.device)
    sums = empty.masked_scatter(inside, token_values).sum(1)
    order = torch.tensor([number for batch in batches for number in batch.responses], device=sums.device)
    return sums[torch.argsort(order)]


def ids_tensor(parts: Iterable[Ids]) -> Tensor:
    """int64 [sum of lengths], the parts one after another."""
    return torch.from_numpy(np.concatenate([*parts]).astype(np.int64))


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside PEFT and data-parallel wrappers."""
    inner: Any = model
    while isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = inner.module
    return cast("PreTrainedModel", inner.get_base_model() if hasattr(inner, "get_base_model") else inner)

"""From token logits to sampled tokens: temperature, nucleus, and the noise of the row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from sera_core.errors import ModelError
from sera_core.models.generate.seeds import gumbel_noise

_SHORTLIST = 512


class RowSampler(LogitsProcessor):
    """Turns an argmax into sampling: the returned scores [b, v] are largest at the token each row draws.

    Row i draws with `seeds[i]`, int64 [b], so that its tokens do not depend on the rows beside it. Temperature 0 is
    greedy. `banned` ids are never drawn; ids that the model has no logit for are allowed there. `start` is the width of
    the prompts, padding included.
    """

    def __init__(
        self, seeds: Tensor, start: int, *, temperature: float, top_p: float, banned: Sequence[int] = ()
    ) -> None:
        """`temperature` >= 0, `top_p` in (0, 1]."""
        self.seeds = seeds
        self.start = start
        self.temperature = temperature
        self.top_p = top_p
        self.banned = torch.tensor(sorted(banned), dtype=torch.int64, device=seeds.device)

    def keep(self, rows: Tensor, *, dropped: int = 0) -> RowSampler:
        """The sampler of `rows`, int64 [k], whose prompts lost their first `dropped` columns."""
        return RowSampler(
            self.seeds[rows],
            self.start - dropped,
            temperature=self.temperature,
            top_p=self.top_p,
            banned=self.banned.tolist(),
        )

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [b, v] for the step after `input_ids` [b, start + step]."""
        logits = scores.float().index_fill(1, self.banned[self.banned < scores.shape[1]], -torch.inf)
        kept = logits.isfinite()
        if self.temperature > 0:
            logits = logits / self.temperature
            kept &= nucleus(logits, self.top_p)
        if not bool(kept.any(1).all()):
            raise ModelError(
                "The model gave a row no finite token logit, or every token is banned; check the checkpoint for nan "
                "weights, or use dtype float32."
            )
        if self.temperature == 0:
            return logits.masked_fill(~kept, -torch.inf)
        rows, tokens = kept.nonzero(as_tuple=True)
        noise = gumbel_noise(self.seeds[rows], input_ids.shape[1] - self.start, tokens)
        drawn = torch.full_like(logits, -torch.inf, dtype=torch.float64)
        drawn[rows, tokens] = logits[rows, tokens].double() + noise
        return drawn


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Bool [b, v]: the most probable tokens whose mass reaches `top_p`, with everything as probable as the last.

    Keeping ties makes the set a function of the distribution alone. Sorting is paid only by rows whose mass is
    spread over more than a short list.

    Source: Holtzman et al. 2020, Eq. 2 and 3.
    """
    if top_p >= 1:
        return torch.ones_like(logits, dtype=torch.bool)
    probabilities = logits.softmax(1)
    shortlist = probabilities.topk(min(_SHORTLIST, logits.shape[1]), dim=1).values
    threshold = _threshold(shortlist, top_p)
    spread = (shortlist.sum(1) < top_p).nonzero().squeeze(1)
    if len(spread):
        threshold[spread] = _threshold(probabilities[spread].sort(1, descending=True).values, top_p)
    return probabilities >= threshold


def _threshold(descending: Tensor, top_p: float) -> Tensor:
    """The probability [b, 1] of the last token needed to reach `top_p`."""
    before = descending.cumsum(1) - descending
    last = (before < top_p).sum(1, keepdim=True) - 1
    return descending.gather(1, last)

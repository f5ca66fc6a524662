"""Log-probabilities under a policy extrapolated away from its reference, token logits mixed chunk by chunk."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sera_core.errors import ModelError
from sera_core.models.logps import check_sums
from sera_core.models.padded import Group, Padded, Row, cut, head_at, pad, rows_of, unwrap

# Response positions whose token logits exist at once: chunk x vocabulary numbers for each of the two models.
CHUNK = 256


@torch.no_grad()
def extrapolated_logps(
    policy: nn.Module,
    reference: Callable[[], AbstractContextManager[nn.Module]],
    groups: Sequence[Group],
    strength: float,
    *,
    token_budget: int | None = None,
) -> Tensor:
    """Summed log-probs float32 [R] of R responses, flat over groups, no gradient.

    The distribution of each token is softmax((1 + strength) l - strength l_ref), l the token logits of the policy and
    l_ref those of the model that `reference` enters, mixed in float32 and normalised after mixing. Batches are those of
    `group_logps`; token logits exist for `CHUNK` response positions at a time.

    Raises:
        ModelError: see `group_logps`, or the two models differ in their vocabulary.

    Source: Kim et al. 2024 (SPA), Eq. 11.
    """
    rows = rows_of(groups, unwrap(policy).config.get_text_config().vocab_size)
    device = next(policy.parameters()).device
    if not rows:
        return torch.zeros(0, device=device)
    batches = cut([len(row.ids) for row in rows], token_budget)
    sums = torch.cat([_batch(policy, reference, [rows[i] for i in batch], strength, device) for batch in batches])
    order = torch.tensor([i for batch in batches for i in batch], device=device)
    sums = sums[torch.argsort(order)]
    check_sums(sums)
    return sums


def _batch(
    policy: nn.Module,
    reference: Callable[[], AbstractContextManager[nn.Module]],
    rows: Sequence[Row],
    strength: float,
    device: torch.device,
) -> Tensor:
    batch = pad(rows, device)
    own = _Head(policy, batch)
    with reference() as model:
        other = _Head(model, batch)
    parts = []
    for start in range(0, len(batch.targets), CHUNK):
        chunk = slice(start, start + CHUNK)
        logits = own.logits(chunk)
        with reference():
            far = other.logits(chunk)
        if far.shape != logits.shape:
            raise ModelError(
                f"Policy and reference have {logits.shape[1]} and {far.shape[1]} token logits; their mixture does not "
                "exist. Use a reference with the policy's vocabulary."
            )
        mixed = logits.mul_(1 + strength).sub_(far, alpha=strength)  # Kim et al. 2024, Eq. 11
        target = mixed.gather(1, batch.targets[chunk, None]).squeeze(1)
        parts.append(target - mixed.logsumexp(1))
    return batch.row_sums(torch.cat(parts))


class _Head:
    """Token logits of one model at a batch's response positions, from hidden states computed once."""

    def __init__(self, model: nn.Module, batch: Padded) -> None:
        self._model: PreTrainedModel = unwrap(model)
        self._ids = batch.ids
        seen: list[Tensor] = []
        outputs: list[Any] = []
        inner: Any = self._model
        body: nn.Module = inner.base_model
        hooks = [body.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))]
        with head_at(self._model, batch.places):
            # Registered after `head_at`'s own hook, it sees response positions only, and lets one through.
            head: nn.Module = inner.get_output_embeddings()
            hooks.append(head.register_forward_pre_hook(lambda _module, inputs: _keep(seen, inputs)))
            try:
                inner(**batch.arguments(self._model))
            finally:
                for hook in hooks:
                    hook.remove()
        self._states, self._output, self._body = seen[0], outputs[0], body

    def logits(self, chunk: slice) -> Tensor:
        """Float32 token logits [t, V] at the response positions of `chunk`, whatever the family does to them."""
        with _returning(self._body, self._output, self._states[:, chunk]):
            answer: Any = self._model(input_ids=self._ids[:1, :1], use_cache=False)
        logits: Tensor = answer.logits.squeeze(0)
        return logits.float() if logits.dtype != torch.float32 else logits


def _keep(seen: list[Tensor], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    seen.append(inputs[0])
    return (inputs[0][:, :1], *inputs[1:])


@contextmanager
def _returning(body: nn.Module, output: Any, states: Tensor) -> Iterator[None]:  # noqa: ANN401  # family's own type
    """Let the model's body give `states` [1, t, H] at once, so that only its head runs, with all that follows it."""
    canned = copy.copy(output)
    canned["last_hidden_state" if "last_hidden_state" in canned else 0] = states
    before = vars(body).get("forward")
    vars(body)["forward"] = lambda *_args, **_kwargs: canned
    try:
        yield
    finally:
        vars(body).pop("forward")
        if before is not None:
            vars(body)["forward"] = before

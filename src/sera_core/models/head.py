"""From hidden states to log-probabilities of tokens: some positions at a time, so that no full logits exist."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from sera_core.errors import ModelError
from sera_core.models.batches import Batch, unwrap
from sera_core.models.products import fast_products, product

# Token logits that exist at once where all of a position's are needed together.
_ELEMENTS = 2**24
# Where some words of the vocabulary will do, fewer on a CPU, whose cache should hold them.
_BLOCK, _CPU_BLOCK = 2**25, 2**21
# Positions of a block at most, and the number whose multiple its words are: others make slow matrix products.
_ROWS, _WORDS = 4096, 512


class Head:
    """The hidden states [T, H] of a batch's T response positions, and what the model makes of them.

    `plain` says that logits are the output embedding times the hidden state and nothing else, which `is_plain` finds
    out; otherwise the family's own code runs on the states.
    """

    def __init__(self, model: nn.Module, batch: Batch, *, plain: bool) -> None:
        self._model, self._ids = unwrap(model), batch.ids
        seen: list[Tensor] = []
        outputs: list[tuple[nn.Module, Any]] = []
        embedding = output_embedding(self._model)
        # An adapter or a hook may have come since the head was found plain.
        self.plain = plain = plain and _bare(embedding)
        hooks = [
            embedding.register_forward_pre_hook(lambda _, inputs: _gather(seen, inputs, batch.places)),
            *(body.register_forward_hook(lambda *call: outputs.append((call[0], call[2]))) for body in self._bodies()),
        ]
        try:
            # Through the wrappers, which keep the ranks of a parallel run in step.
            model(**batch.arguments())
        finally:
            for hook in hooks:
                hook.remove()
        if batch.layout is not None and not batch.layout.asked:
            raise ModelError(
                f"{type(self._model).__name__} computed a pack as one text: its attention was switched meanwhile. "
                "Leave it as it was loaded, or choose another with policy.attn_implementation."
            )
        self.states: Tensor = seen[0]
        if not outputs and not plain:
            raise ModelError(f"{type(self._model).__name__} has no body apart from its head. Use another family.")
        # The last to end is the one that the head's caller called.
        self._answer: tuple[nn.Module, Any] | None = None if plain else outputs[-1]

    def _bodies(self) -> list[nn.Module]:
        """Modules that may give the hidden states: a family's causal model calls its body, or the decoder in it."""
        model: Any = self._model
        known = (model.base_model, model.get_decoder(), getattr(model, "model", None))
        return [body for body in dict.fromkeys(known) if isinstance(body, nn.Module) and body is not model]

    def logits(self, states: Tensor) -> Tensor:
        """Float32 token logits [t, V] of states [t, H], whatever the family does to them."""
        if self.plain:
            embedding: Any = output_embedding(self._model)
            return linear(states, embedding.weight, embedding.bias).float()
        assert self._answer is not None  # noqa: S101  # kept by __init__ for such a head
        with _returning(*self._answer, states[None]):
            answer: Any = self._model(input_ids=self._ids[:1, :1], use_cache=False)
        logits: Tensor = answer.logits.squeeze(0)
        return logits.float()

    def token_logps(self, states: Tensor, targets: Tensor) -> Tensor:
        """Log-probabilities float32 [t] of `targets` int64 [t] after states [t, H]; backward computes logits anew."""
        if self.plain:
            embedding: Any = output_embedding(self._model)
            device = states.device.type
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else embedding.weight.dtype
            given = (states.to(dtype), embedding.weight, embedding.bias, targets)
            found: Tensor = _LinearLogps.apply(*given)  # type: ignore[no-untyped-call]
            return found
        size = chunk_size(int(self._model.config.get_text_config().vocab_size))
        parts = zip(torch.split(states, size), torch.split(targets, size), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([self._logps(*part) for part in parts])
        return torch.cat([checkpoint(self._logps, *part, use_reentrant=False) for part in parts])

    def _logps(self, states: Tensor, targets: Tensor) -> Tensor:
        # Here too, so that the checkpoint's second pass multiplies as the first did.
        with fast_products(self._model):
            return target_logps(self.logits(states), targets)


def target_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """Log softmax(logits)[target], float32 [t], of logits float32 [t, V]."""
    return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(1)


def chunk_size(vocabulary: int) -> int:
    """Positions whose token logits exist at once."""
    return max(1, _ELEMENTS // vocabulary)


def output_embedding(model: PreTrainedModel) -> nn.Module:
    """The module that turns hidden states into token logits.

    Raises:
        ModelError: there is none.
    """
    inner: Any = model
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if not isinstance(head, nn.Module):
        raise ModelError(
            f"{type(model).__name__} has no output embedding, so it gives no token log-probabilities. "
            "Use a causal language model."
        )
    return head


@torch.no_grad()
def is_plain(model: PreTrainedModel, batch: Batch) -> bool:
    """Whether the model's logits are its output embedding times the hidden state, tried on a small batch."""
    embedding = output_embedding(model)
    if not _bare(embedding):
        return False
    seen: list[Tensor] = []
    handle = embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        call: Any = model
        own = call(**batch.arguments()).logits.float()
    finally:
        handle.remove()
    expected = linear(seen[0], embedding.weight, embedding.bias).float()
    return own.shape == expected.shape and torch.equal(own, expected)


def _bare(embedding: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is a matrix product and nothing else."""
    hooked = "forward" in vars(embedding) or embedding._forward_hooks  # torch has no public way to ask
    return type(embedding) is nn.Linear and not hooked


class _LinearLogps(torch.autograd.Function):
    """log softmax(x W' + b)[target] for T rows, block by block; keeps the normalisers, not the logits.

    A block is some rows by some words of the vocabulary, small enough for a processor's cache. Matrix products run in
    the dtype of the states, whatever that of the weight; sums over rows are float32.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:  # noqa: ANN401
        chosen = torch.zeros(len(states), dtype=torch.float32, device=states.device)
        # Sum of exponentials over the words so far, in units of the largest: small blocks count beside large ones.
        most, total = torch.full_like(chosen, torch.finfo(torch.float32).min), torch.zeros_like(chosen)
        for rows, words in _blocks(len(states), len(weight), states.device):
            logits = _logits(states[rows], weight[words], bias, words)
            column, inside = _columns(targets[rows], words)
            chosen[rows] += logits.gather(1, column).squeeze(1).where(inside, 0.0)
            highest = torch.maximum(most[rows], logits.amax(1))
            total[rows] *= (most[rows] - highest).exp_()
            total[rows] += logits.sub_(highest[:, None]).exp_().sum(1)
            most[rows] = highest
        total.log_()
        ctx.save_for_backward(states, weight, bias, targets, most + total)
        return chosen.sub_(most).sub_(total)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:  # noqa: ANN401
        states, weight, bias, targets, normalisers = ctx.saved_tensors
        wanted = (states, weight, bias)
        sums = [
            torch.empty_like(tensor, dtype=torch.float32) if wants else None
            for tensor, wants in zip(wanted, ctx.needs_input_grad, strict=False)
        ]
        by_states, by_weight, by_bias = sums
        for rows, words in _blocks(len(states), len(weight), states.device):
            slopes = _logits(states[rows], weight[words], bias, words).sub_(normalisers[rows, None]).exp_()
            # d log p(target) / d logits = one-hot(target) - softmax
            slopes.mul_(-gradient[rows, None])
            column, inside = _columns(targets[rows], words)
            slopes.scatter_add_(1, column, (gradient[rows] * inside)[:, None])
            rounded = slopes.to(states.dtype)
            if by_states is not None:
                _add(by_states[rows], words.start > 0, product(rounded, weight[words].to(states.dtype).t()))
            if by_weight is not None:
                _add(by_weight[words], rows.start > 0, rounded.T @ states[rows])
            if by_bias is not None:
                _add(by_bias[words], rows.start > 0, slopes.sum(0))
        found = [None if total is None else total.to(tensor.dtype) for total, tensor in zip(sums, wanted, strict=True)]
        return found[0], found[1], found[2], None


def _blocks(rows: int, words: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Rows and words of the vocabulary whose logits exist at once; all words of some rows, then of the next."""
    tall = min(rows, _ROWS)
    size = _CPU_BLOCK if device.type == "cpu" else _BLOCK
    wide = max(size // max(tall, 1) // _WORDS, 1) * _WORDS
    for top in range(0, max(rows, 1), _ROWS):
        for left in range(0, words, wide):
            yield slice(top, min(top + _ROWS, rows)), slice(left, min(left + wide, words))


def _logits(states: Tensor, weight: Tensor, bias: Tensor | None, words: slice) -> Tensor:
    """Float32 logits [t, v] of a block; `weight` [v, H] is the block's part, `bias` [V] is whole."""
    dtype = states.dtype
    return product(states, weight.to(dtype), None if bias is None else bias[words].to(dtype)).float()


def _columns(targets: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """The column [t, 1] of each row's target among the words of a block, and whether it is there, bool [t]."""
    inside = (targets >= words.start) & (targets < words.stop)
    return (targets - words.start).clamp_(0, words.stop - words.start - 1)[:, None], inside


def _add(total: Tensor, begun: bool, part: Tensor) -> None:
    """Add to a float32 total, whose memory holds anything as long as it has not `begun`."""
    if begun:
        total += part
    else:
        total.copy_(part)


def _gather(seen: list[Tensor], inputs: tuple[Tensor, ...], places: Tensor) -> tuple[Tensor, ...]:
    """Keep the hidden states at `places` and let a single one through: hooking the head leaves the family's code be."""
    hidden = inputs[0]
    states = hidden.reshape(-1, hidden.shape[-1])[places]
    seen.append(states)
    return (states[None, :1], *inputs[1:])


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

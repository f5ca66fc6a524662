"""Small fixed inputs on which contract checks run. Every call returns fresh arrays."""

from __future__ import annotations

import numpy as np
import torch

from sera_core.protocols import Needs
from sera_core.records import (
    BatchStats,
    Candidates,
    IterateLogps,
    PairBatch,
    PairLogps,
    Prompt,
    Response,
    ScoringLogps,
    TextPrompt,
)
from sera_core.testing.tiny import WORDS, token_ids

COUNT = 6


def prompt(index: int) -> Prompt:
    """The prompt ``p<index>`` of three words, with a right answer and its alternatives in the meta data."""
    topic = WORDS[index]
    meta = {"gold": {topic: "blue"}, "choices": {topic: ["blue", "red", "green"]}}
    text = f"what is {topic}"
    return Prompt(f"p{index}", token_ids(text), TextPrompt(f"p{index}", text, meta=meta))


def response(
    index: int, text: str, *, sample: int = 0, origin: str = "policy:1", score: float | None = 0.0
) -> Response:
    """An answer to ``p<index>``, one token a word and an end-of-turn token."""
    ids = np.append(token_ids(text), np.int32(1)).astype(np.int32)
    return Response(prompt(index), ids, text, "stop", origin, sample, score)


def responses() -> tuple[Response, ...]:
    """Six answers of different words, lengths and annotated scores, each to its own prompt."""
    texts = ("blue", "red red", "green blue dog", "blue one two three", "red sun", "dog cat blue")
    return tuple(response(i, text, score=float((i * 5) % 7) - 2.5) for i, text in enumerate(texts))


def other_responses() -> tuple[Response, ...]:
    """A second answer to each prompt of `responses`: some better, some worse, one the same."""
    texts = ("red", "blue", "blue", "blue one", "red sun", "green")
    return tuple(response(i, text, score=float((i * 3) % 7) - 2.0) for i, text in enumerate(texts))


def scoring_logps(needs: Needs, history: int | None = None) -> ScoringLogps:
    """Log-probs of `responses` as a scorer with these needs gets them; `history` iterates, by default all it wants."""
    rng = np.random.default_rng(7)
    lengths = np.array([r.ids.size for r in responses()], dtype=np.int64)
    wanted = needs.history if history is None else history
    iterates = tuple(
        IterateLogps(wanted - age, -3.0 * lengths * rng.random(COUNT), -3.0 * lengths * rng.random(COUNT))
        for age in range(wanted)
    )
    return ScoringLogps(lengths, iterates, -3.0 * lengths * rng.random(COUNT) if needs.initial else None)


def permuted(logps: ScoringLogps, order: np.ndarray) -> ScoringLogps:
    """The same log-probs for responses in another order."""
    iterates = tuple(IterateLogps(i.iteration, i.policy[order], i.reference[order]) for i in logps.iterates)
    return ScoringLogps(logps.lengths[order], iterates, None if logps.initial is None else logps.initial[order])


def candidates() -> Candidates:
    """Five prompts with four answers each, the first of which is from data, so that it can be a reference answer.

    Prompts 0 and 4 have distinct answers (4 with a repeat); 1 has one answer four times; 2 one answer beside empty
    ones; 3 only empty ones.
    """
    groups = (
        ("blue", "red", "green sun", "dog"),
        ("cat cat", "cat cat", "cat cat", "cat cat"),
        ("sun", "", "sun", ""),
        ("", "", "", ""),
        ("red dog", "blue", "blue", "one two"),
    )
    built = tuple(
        tuple(
            response(i, text, sample=k, origin="policy:1" if k else "offline", score=None)
            for k, text in enumerate(group)
        )
        for i, group in enumerate(groups)
    )
    return Candidates(tuple(group[0].prompt for group in built), built)


def candidate_scores() -> list[np.ndarray]:
    """Scores float64 [4] for each group of `candidates`, no two equal."""
    rng = np.random.default_rng(11)
    return [rng.permutation(4) + rng.random(4) for _ in range(5)]


def pair_logps(dtype: torch.dtype = torch.float32, *, reference: bool = True, seed: int = 3) -> PairLogps:
    """Log-probs of six pairs with lengths from 1 to 9, between -0.1 and -3 nats a token."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 10, size=(2, COUNT))
    sums = -lengths * rng.uniform(0.1, 3.0, size=(2, 2, COUNT))
    (chosen, rejected), (chosen_reference, rejected_reference) = torch.tensor(sums, dtype=dtype)
    return PairLogps(
        chosen,
        rejected,
        torch.tensor(lengths[0]),
        torch.tensor(lengths[1]),
        chosen_reference if reference else None,
        rejected_reference if reference else None,
    )


def pair_batch(needs: Needs, *, seed: int = 3) -> PairBatch:
    """A batch of six pairs in the middle of the first iteration, with log-probs under each prefix asked for."""
    shifted = (pair_logps(seed=seed + 1 + i) for i in range(len(needs.prefixes)))
    prefixed = {
        prefix: logps.chosen_policy - logps.rejected_policy
        for prefix, logps in zip(needs.prefixes, shifted, strict=True)
    }
    return PairBatch(pair_logps(seed=seed), progress=0.5, iteration=1, prefixed=prefixed)


def batch_stats(count: int = COUNT, *, known: bool = False) -> BatchStats:
    """Statistics of `count` pairs, as the dpo objective with beta 0.5 would give them.

    With `known` flips every other label is known: wrong, right, wrong and so on. Otherwise none is.
    """
    margins = torch.linspace(-4.0, 5.0, count)[torch.randperm(count, generator=torch.Generator().manual_seed(5))]
    confidences = torch.sigmoid(0.5 * margins)
    flipped = torch.full((count,), torch.nan)
    if known:
        flipped[::2] = (torch.arange(len(flipped[::2])) % 2 == 0).to(flipped.dtype)
    return BatchStats(margins, confidences, -confidences.log(), flipped, progress=0.5)

"""Contracts of scorers and selectors."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from sera_core.protocols import Scorer, Selector, SelectsByPrompt
from sera_core.records import Floats
from sera_core.testing import samples
from sera_core.testing.contract import Property, require

PROMPTS = np.array([0, 0, 1, 2, 2, 0, 3, 2, 0, 3])
MARGINS = np.array([0.5, -1.25, 3.0, 0.5, 0.0, -7.5, 2.0, 1.0, 40.0, -0.125])


def _scores(scorer: Scorer) -> Floats:
    return scorer.scores(samples.responses(), samples.scoring_logps(scorer.needs))


def _float64(scorer: Scorer) -> None:
    scores = _scores(scorer)
    require(isinstance(scores, np.ndarray) and scores.dtype == np.float64, f"scores must be float64, got {scores!r}")
    require(scores.shape == (samples.COUNT,), f"expected shape ({samples.COUNT},), got {scores.shape}")


def _finite(scorer: Scorer) -> None:
    for history in range(min(1, scorer.needs.history), scorer.needs.history + 1):
        scores = scorer.scores(samples.responses(), samples.scoring_logps(scorer.needs, history))
        require(np.isfinite(scores).all(), f"not finite with {history} iterates: {scores}")


def _scorer_deterministic(scorer: Scorer) -> None:
    require(np.array_equal(_scores(scorer), _scores(scorer)), "two calls with equal inputs differ")


def _permutation_equivariant(scorer: Scorer) -> None:
    responses, logps = samples.responses(), samples.scoring_logps(scorer.needs)
    order = np.array([3, 0, 5, 1, 4, 2])
    straight = scorer.scores(responses, logps)
    shuffled = scorer.scores(tuple(responses[i] for i in order), samples.permuted(logps, order))
    require(
        np.allclose(shuffled, straight[order], rtol=1e-9, atol=0),
        f"scores depend on the order of responses: {straight[order]} became {shuffled}",
    )


def _per_response(scorer: Scorer) -> None:
    responses, logps = samples.responses(), samples.scoring_logps(scorer.needs)
    together = scorer.scores(responses, logps)
    alone = scorer.scores(responses[:1], samples.permuted(logps, np.array([0])))
    require(
        np.allclose(alone, together[:1], rtol=1e-9, atol=0),
        f"a response scores {together[0]} among others, {alone} alone",
    )


def _leaves_logps_alone(scorer: Scorer) -> None:
    logps = samples.scoring_logps(scorer.needs)
    before = copy.deepcopy(logps)
    scorer.scores(samples.responses(), logps)
    require(np.array_equal(logps.lengths, before.lengths), "lengths were changed")
    for now, was in zip(logps.iterates, before.iterates, strict=True):
        require(np.array_equal(now.policy, was.policy), "policy log-probs were changed")
        require(np.array_equal(now.reference, was.reference), "reference log-probs were changed")
    if logps.initial is not None and before.initial is not None:
        require(np.array_equal(logps.initial, before.initial), "initial log-probs were changed")


def _select(selector: Selector, margins: Floats, pool: int) -> Any:  # noqa: ANN401
    """What a run would select; a selector by prompt gets prompts of one to four pairs."""
    rng, by_prompt = np.random.default_rng(0), _by_prompt(selector)
    if by_prompt is None:
        return selector.select(margins.copy(), pool, rng)
    return by_prompt.select_by_prompt(margins.copy(), PROMPTS[: len(margins)].copy(), pool, rng)


def _by_prompt(selector: object) -> SelectsByPrompt | None:
    return selector if isinstance(selector, SelectsByPrompt) else None


def _plain_select(selector: Selector) -> None:
    chosen = selector.select(MARGINS.copy(), len(MARGINS), np.random.default_rng(0))
    require(isinstance(chosen, np.ndarray) and chosen.dtype == np.int64, f"select must give int64, got {chosen!r}")
    again = selector.select(MARGINS.copy(), len(MARGINS), np.random.default_rng(0))
    require(np.array_equal(chosen, again), f"equal margins and random state gave {chosen} and {again}")
    sound = (np.diff(chosen) > 0).all() and ((chosen >= 0) & (chosen < len(MARGINS))).all()
    require(sound, f"indices must be unique, sorted and in range, got {chosen}")


def _indices(selector: Selector) -> None:
    for count in (len(MARGINS), 1, 0):
        chosen = _select(selector, MARGINS[:count], count)
        require(isinstance(chosen, np.ndarray) and chosen.dtype == np.int64, f"expected int64 indices, got {chosen!r}")
        require(chosen.ndim == 1, f"expected one axis, got shape {chosen.shape}")
        require((np.diff(chosen) > 0).all(), f"indices must be unique and sorted, got {chosen}")
        require(((chosen >= 0) & (chosen < count)).all(), f"indices out of range of {count} margins: {chosen}")


def _selector_deterministic(selector: Selector) -> None:
    first, second = _select(selector, MARGINS, len(MARGINS)), _select(selector, MARGINS, len(MARGINS))
    require(np.array_equal(first, second), f"equal margins and random state gave {first} and {second}")


def _rank_based(selector: Selector) -> None:
    plain = _select(selector, MARGINS, len(MARGINS))
    for rescaled in (MARGINS * 3.0 + 100.0, np.cbrt(MARGINS), np.exp(MARGINS) - 2.0):
        moved = _select(selector, rescaled, len(MARGINS))
        require(np.array_equal(moved, plain), f"a monotone rescaling changed the choice from {plain} to {moved}")


def _honours_pool(selector: Selector) -> None:
    sizes = [len(_select(selector, MARGINS, pool)) for pool in (10, 12, 20, 100)]
    require(sizes == sorted(sizes), f"a larger pool must not keep fewer pairs: {sizes} for pools of 10, 12, 20, 100")
    fraction = getattr(selector, "fraction", None)
    if fraction is not None:
        wanted = [min(10, int(fraction * pool + 0.5)) for pool in (10, 12, 20, 100)]
        near = all(abs(size - want) <= 1 for size, want in zip(sizes, wanted, strict=True))
        require(near, f"a fraction is a fraction of the pool: expected about {wanted} pairs, got {sizes}")


def _leaves_margins_alone(selector: Selector) -> None:
    margins, prompts = MARGINS.copy(), PROMPTS.copy()
    by_prompt = _by_prompt(selector)
    if by_prompt is not None:
        by_prompt.select_by_prompt(margins, prompts, len(margins), np.random.default_rng(0))
    selector.select(margins, len(margins), np.random.default_rng(0))
    require(np.array_equal(margins, MARGINS), "margins were changed")
    require(np.array_equal(prompts, PROMPTS), "prompt numbers were changed")


SCORER = (
    Property("float64", _float64),
    Property("finite", _finite),
    Property("deterministic", _scorer_deterministic),
    Property("permutation-equivariant", _permutation_equivariant),
    Property("per-response", _per_response),
    Property("leaves-inputs-alone", _leaves_logps_alone),
)
SELECTOR = (
    Property("unique-sorted-in-range", _indices),
    Property("deterministic", _selector_deterministic),
    Property("rank-based", _rank_based, lambda factory: getattr(factory, "rank_based", False)),
    Property("honours-pool", _honours_pool),
    Property("leaves-inputs-alone", _leaves_margins_alone),
    Property("select-alone", _plain_select, lambda factory: hasattr(factory, "select_by_prompt")),
)

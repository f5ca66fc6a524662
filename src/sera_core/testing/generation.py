"""Contracts of labelers and generators."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sera_core.protocols import GenerationContext, Generator, Labeler, MayBeMissing, Sampling
from sera_core.records import Candidates, Floats, Pairs, Prompt
from sera_core.testing import samples
from sera_core.testing.contract import Property, example_of, require
from sera_core.testing.tiny import SPECIAL, save_tiny_model

SAMPLING = Sampling(samples=2, temperature=1.0, top_p=1.0, max_new_tokens=5)
CONTEXT = GenerationContext(seed=1, iteration=2, purpose="contract", stop=(1,), banned=(0, 2))


def _label(labeler: Labeler, candidates: Candidates, scores: Sequence[Floats]) -> Pairs:
    return labeler.label(candidates, scores, np.random.default_rng(0))


def _labelled(labeler: Labeler) -> Pairs:
    return _label(labeler, samples.candidates(), samples.candidate_scores())


def _ids(pairs: Pairs) -> list[tuple[str, bytes, bytes]]:
    return [(pair.id, pair.chosen.ids.tobytes(), pair.rejected.ids.tobytes()) for pair in pairs.pairs]


def _makes_pairs(labeler: Labeler) -> None:
    pairs = _labelled(labeler).pairs
    require(pairs, "no pair came of prompts with several distinct responses")
    for pair in pairs:
        require(pair.chosen.ids.tobytes() != pair.rejected.ids.tobytes(), f"{pair.id}: chosen equals rejected")
        require(0 <= pair.confidence <= 1, f"{pair.id}: confidence {pair.confidence} outside [0, 1]")
    require(len({pair.id for pair in pairs}) == len(pairs), f"pair ids repeat: {[pair.id for pair in pairs]}")


def _keeps_prompts(labeler: Labeler) -> None:
    candidates = samples.candidates()
    groups = {prompt.id: group for prompt, group in zip(candidates.prompts, candidates.responses, strict=True)}
    pairs = _label(labeler, candidates, samples.candidate_scores()).pairs
    for pair in pairs:
        group = [response.ids.tobytes() for response in groups[pair.prompt.id]]
        both = pair.chosen.ids.tobytes() in group and pair.rejected.ids.tobytes() in group
        require(both and pair.rejected.prompt.id == pair.prompt.id, f"{pair.id}: responses of different prompts")
    prompts = [pair.prompt.id for pair in pairs]
    require(len(set(prompts)) == len(prompts), f"more than one pair for a prompt: {prompts}")


def _counts_drops(labeler: Labeler) -> None:
    made = _labelled(labeler)
    require(
        made.pool == len(samples.candidates().prompts),
        f"{len(made.pairs)} pairs and drops {dict(made.dropped)}: 5 prompts",
    )
    for pair in made.pairs:
        require(
            pair.prompt.id not in ("p1", "p2", "p3"), f"{pair.id}: too few distinct responses with words to compare"
        )
        require(pair.chosen.text.strip() and pair.rejected.text.strip(), f"{pair.id}: an empty response")


def _drops_ties(labeler: Labeler) -> None:
    candidates, scores = samples.candidates(), samples.candidate_scores()
    reads_scores = _ids(_label(labeler, candidates, scores)) != _ids(_label(labeler, candidates, [-s for s in scores]))
    tied = _label(labeler, candidates, [np.zeros_like(s) for s in scores])
    require(not (reads_scores and tied.pairs), f"a labeler that reads scores must drop ties, got {_ids(tied)}")


def _labeler_deterministic(labeler: Labeler) -> None:
    require(_ids(_labelled(labeler)) == _ids(_labelled(labeler)), "two calls with equal inputs differ")


def _generate(generator: Generator, prompts: Sequence[Prompt], context: GenerationContext = CONTEXT) -> Candidates:
    with tempfile.TemporaryDirectory() as folder:
        return generator.generate(save_tiny_model(Path(folder) / "model"), prompts, SAMPLING, context)


def _prompts() -> tuple[Prompt, ...]:
    prompts = [samples.prompt(index) for index in range(3)]
    # Lengths that differ make padding matter.
    return (*prompts[:2], replace(prompts[2], ids=np.tile(prompts[2].ids, 3)))


def _drawn(candidates: Candidates) -> dict[str, list[bytes]]:
    groups = zip(candidates.prompts, candidates.responses, strict=True)
    return {prompt.id: [response.ids.tobytes() for response in group] for prompt, group in groups}


def _complete(generator: Generator) -> None:
    prompts = _prompts()
    made = _generate(generator, prompts)
    require([p.id for p in made.prompts] == [p.id for p in prompts], "prompts were dropped or reordered")
    for prompt, group in zip(made.prompts, made.responses, strict=True):
        numbers = [response.sample for response in group]
        require(numbers == list(range(SAMPLING.samples)), f"{prompt.id}: expected samples 0 and 1, got {numbers}")
        for response in group:
            require(response.prompt.id == prompt.id, f"{prompt.id}: a response names prompt {response.prompt.id}")
            require(response.ids.dtype == np.int32, f"{prompt.id}: ids must be int32, got {response.ids.dtype}")
            size = response.ids.size
            require(
                1 <= size <= SAMPLING.max_new_tokens, f"{prompt.id}: {size} tokens of at most {SAMPLING.max_new_tokens}"
            )


def _finish_reasons(generator: Generator) -> None:
    for response in _generate(generator, _prompts()).flat():
        ids = response.ids.tolist()
        stopped = ids[-1] in CONTEXT.stop
        require(
            response.finish_reason == ("stop" if stopped else "length"), f"{ids} finished by {response.finish_reason}"
        )
        require(stopped or len(ids) == SAMPLING.max_new_tokens, f"{ids} ends before a stop token or the limit")
        require(not set(ids[:-1]) & set(CONTEXT.stop), f"{ids} goes on after a stop token")
        require(not set(ids) & set(CONTEXT.banned), f"{ids} holds a banned token of {SPECIAL}")


def _independent_of_batch(generator: Generator) -> None:
    prompts = _prompts()
    together = _drawn(_generate(generator, prompts))
    require(_drawn(_generate(generator, prompts[::-1])) == together, "the order of prompts changed what was drawn")
    alone = _drawn(_generate(generator, prompts[1:2]))
    require(alone[prompts[1].id] == together[prompts[1].id], "the other prompts changed what was drawn")


def _seeded(generator: Generator) -> None:
    prompts = _prompts()
    plain = _drawn(_generate(generator, prompts))
    require(_drawn(_generate(generator, prompts)) == plain, "two calls with equal inputs differ")
    changes = (replace(CONTEXT, seed=9), replace(CONTEXT, iteration=3), replace(CONTEXT, purpose="other"))
    for context in changes:
        require(
            _drawn(_generate(generator, prompts, context)) != plain, f"the draw does not depend on all of {context}"
        )


LABELER = (
    Property("makes-pairs", _makes_pairs),
    Property("keeps-prompts", _keeps_prompts),
    Property("counts-drops", _counts_drops),
    Property("drops-ties", _drops_ties),
    Property("deterministic", _labeler_deterministic),
)


def _available(factory: type[Generator]) -> bool:
    """Whether the generator can run here at all; where not, the plan refuses it."""
    example = example_of(factory)
    return not isinstance(example, MayBeMissing) or example.unavailable() is None


GENERATOR = (
    Property("complete", _complete, _available),
    Property("finish-reasons", _finish_reasons, _available),
    Property("independent-of-batch", _independent_of_batch, _available),
    Property("seeded", _seeded, _available),
)

"""Labeling: candidates to pairs, with the policy's samples marked as such."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from sera_core.errors import DataError
from sera_core.protocols import Labeler
from sera_core.records import Candidates, Floats, Pairs, Response


def with_targets(candidates: Candidates, targets: Mapping[str, Response]) -> Candidates:
    """Put each prompt's reference answer first among its candidates.

    Raises:
        DataError: a prompt has no reference answer.
    """
    for prompt in candidates.prompts:
        if prompt.id not in targets:
            raise DataError(f"Prompt '{prompt.id}' has no reference answer, which the labeler needs.")
    groups = tuple(
        (dataclasses.replace(targets[prompt.id], prompt=prompt), *group)
        for prompt, group in zip(candidates.prompts, candidates.responses, strict=True)
    )
    return Candidates(candidates.prompts, groups)


def label(
    labeler: Labeler,
    candidates: Candidates,
    scores: Sequence[Floats],
    rng: np.random.Generator,
    *,
    iteration: int,
    template: str,
    lost: Mapping[str, int],
) -> Pairs:
    """Pairs with unique ids, source ``generated`` and the template hash filled in; `lost` prompts count as drops."""
    pairs = labeler.label(candidates, scores, rng)
    named = tuple(
        dataclasses.replace(pair, id=f"{pair.prompt.id}#{iteration}.{index}", source="generated", template=template)
        for index, pair in enumerate(pairs.pairs)
    )
    reasons = sorted({*lost, *pairs.dropped})
    return Pairs(named, {reason: lost.get(reason, 0) + pairs.dropped.get(reason, 0) for reason in reasons})

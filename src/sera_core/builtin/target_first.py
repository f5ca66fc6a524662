"""Pairs of a reference answer and the policy's own sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sera_core.candidates import generated_pair, is_empty, wording
from sera_core.errors import DataError
from sera_core.protocols import Needs
from sera_core.records import Candidates, Floats, Pair, Pairs, Response


@dataclass(frozen=True)
class TargetFirst:
    """The prompt's reference answer against the policy's own sample, whatever the scores: self-play fine-tuning.

    The **first response of each group is the target**, of origin ``offline``; the others are samples, of which the
    first usable one is rejected. Dropped prompts are counted as ``equals_target`` (every sample repeats the target) or
    ``empty_response`` (the target is empty, or every other sample is).

    Source: Chen 2024 (SPIN), Eq. 4.7.
    """

    @property
    def needs(self) -> Needs:
        """Prompts that carry a reference answer."""
        return Needs(targets=True)

    def label(self, candidates: Candidates, scores: Sequence[Floats], rng: np.random.Generator) -> Pairs:  # noqa: ARG002
        """At most one pair per prompt, in prompt order, confidence 1; `template` is left for the caller to fill.

        Raises:
            DataError: a group does not start with an offline response followed by at least one sample.
        """
        pairs = []
        dropped: Counter[str] = Counter()
        for group in candidates.responses:
            made = _pair(group)
            if isinstance(made, Pair):
                pairs.append(made)
            else:
                dropped[made] += 1
        return Pairs(tuple(pairs), dict(sorted(dropped.items())))


def _pair(group: Sequence[Response]) -> Pair | str:
    if len(group) < 2 or group[0].origin != "offline":
        prompt = f"prompt '{group[0].prompt.id}'" if group else "a prompt"
        raise DataError(
            f"Labeler 'target_first' expects the reference answer of {prompt} first (origin offline), then samples; "
            f"got {len(group)} responses of origin {[response.origin for response in group]}. "
            "Use prompts that carry targets."
        )
    target, samples = group[0], group[1:]
    if is_empty(target):
        return "empty_response"
    different = [sample for sample in samples if wording(sample) != wording(target)]
    usable = [sample for sample in different if not is_empty(sample)]
    if usable:
        return generated_pair(target, usable[0])
    return "empty_response" if different else "equals_target"

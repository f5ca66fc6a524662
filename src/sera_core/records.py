"""The data that travels between rooms: frozen records, numpy arrays, no behaviour beyond derived views.

Token ids are int32 arrays. A response's ids **include its end-of-turn token** when it has one; a prompt's ids end
where generation starts. Log-probs are natural-log sums over response tokens only, never prompt tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Ids = NDArray[np.int32]
Floats = NDArray[np.float64]
FinishReason = Literal["stop", "length", "given"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A prompt before tokenisation.

    `messages` is a conversation whose last turn is not the assistant's, or a plain string, which is tokenised
    without a chat template. `meta` holds JSON values a judge may need (the world keeps the right answers there).
    `target` is a reference answer, if the source has one (SPIN's chosen response).
    """

    id: str
    messages: tuple[Message, ...] | str
    target: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TextPair:
    """A labelled pair of answers before tokenisation.

    `flipped` is True or False where label noise is known, None where it is not. Scores are annotated ones, higher
    better, None where the source has none.
    """

    id: str
    prompt: TextPrompt
    chosen: str
    rejected: str
    chosen_score: float | None = None
    rejected_score: float | None = None
    flipped: bool | None = None


@dataclass(frozen=True)
class SourceData:
    """What a source hands over, as text.

    `pairs` train; `validation` are held-out pairs with clean labels; `prompts` are named sets without labels
    (``sft`` prompts carry targets, ``fresh`` ones do not); `evaluation` are held-out prompts. The sets are disjoint.
    `dropped` counts rows refused while reading, by reason. `fingerprint` identifies content and options.
    `probes` are further named sets of labelled pairs that only diagnostics read.
    """

    name: str
    pairs: tuple[TextPair, ...]
    validation: tuple[TextPair, ...]
    evaluation: tuple[TextPrompt, ...]
    prompts: Mapping[str, tuple[TextPrompt, ...]] = field(default_factory=dict)
    probes: Mapping[str, tuple[TextPair, ...]] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    fingerprint: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A tokenised prompt. `ids` int32 [p] hold at most one BOS and end where the answer starts."""

    id: str
    ids: Ids
    source: TextPrompt


@dataclass(frozen=True, slots=True, eq=False)
class Response:
    """A tokenised answer to a prompt.

    `ids` int32 [r], end-of-turn included when the answer has one. `finish_reason`: ``stop`` (ended by itself),
    ``length`` (cut by the token limit), ``given`` (from data). `sample` numbers the samples of one prompt.
    `origin` says who wrote it: ``offline`` or ``policy:<iteration>``.
    """

    prompt: Prompt
    ids: Ids
    text: str
    finish_reason: FinishReason
    origin: str
    sample: int = 0
    score: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Several responses per prompt: `responses[i]` all answer `prompts[i]`."""

    prompts: tuple[Prompt, ...]
    responses: tuple[tuple[Response, ...], ...]

    def flat(self) -> tuple[Response, ...]:
        """All responses, prompt by prompt."""
        return tuple(response for group in self.responses for response in group)


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A training pair. `id` is unique within a run; `source` and `template` (a hash) say where it came from.

    `confidence` is the labeler's probability that chosen is better, in [0, 1]; 1 for given labels.
    """

    id: str
    chosen: Response
    rejected: Response
    source: str
    template: str
    confidence: float = 1.0
    flipped: bool | None = None

    @property
    def prompt(self) -> Prompt:
        """The prompt both responses answer."""
        return self.chosen.prompt


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Pairs and what was dropped on the way to them, counted by reason. `pool` counts pairs before drops."""

    pairs: tuple[Pair, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def pool(self) -> int:
        """How many pairs there would be had none been dropped."""
        return len(self.pairs) + sum(self.dropped.values())


@dataclass(frozen=True, slots=True)
class IterateLogps:
    """Sequence log-probs of n responses under one trained iterate and under the reference it was trained against.

    `policy`, `reference`: float64 [n], natural-log sums over response tokens.
    """

    iteration: int
    policy: Floats
    reference: Floats


@dataclass(frozen=True, slots=True)
class ScoringLogps:
    """All log-probs a scorer may see, aligned with its n responses.

    `lengths` int64 [n] counts response tokens. `iterates` is newest first and as long as the scorer's
    `Needs.history` allows and training has progressed. `initial` float64 [n] is under the initial policy, present
    when `Needs.initial`.
    """

    lengths: NDArray[np.int64]
    iterates: tuple[IterateLogps, ...] = ()
    initial: Floats | None = None


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Summed log-probs of one batch of b pairs, torch float32 [b] each, and response lengths, int64 [b].

    `*_reference` is None exactly when the objective does not need a reference.
    """

    chosen_policy: Tensor
    rejected_policy: Tensor
    chosen_length: Tensor
    rejected_length: Tensor
    chosen_reference: Tensor | None = None
    rejected_reference: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PairBatch:
    """What a transform or smoother may see beside margins: the batch's log-probs and where training stands.

    `progress` in [0, 1] is the share of the iteration's optimiser steps done. `prefixed` holds the objective's margins
    [b] under each prompt prefix of `Needs.prefixes`, by the prefix, without gradient.
    """

    logps: PairLogps
    progress: float
    iteration: int
    prefixed: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BatchStats:
    """Detached statistics of the whole effective batch, torch float32 [n] each, for reweighters.

    The effective batch is every pair of one optimiser step: all ranks, all micro-batches. For a reweighter with
    `Needs.dataset_every` it is the whole training set instead. `flipped` is 1 where the label is known to be flipped,
    0 where known clean, nan where unknown.
    """

    margins: Tensor
    confidences: Tensor
    losses: Tensor
    flipped: Tensor
    progress: float


@dataclass(frozen=True, slots=True, eq=False)
class Weighted:
    """Weights [n] of n pairs, >= 0, without gradient, and figures that say how they came about.

    `metrics` go into the step record under their own names: finite numbers, as floats or tensors [].
    """

    weights: Tensor
    metrics: Mapping[str, float | Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Smoothed:
    """How a smoother splits b pairs, `keep` and `flip` [b] without gradient, and figures that say how it came about.

    `metrics` go into the step record under their own names: finite numbers, as floats or tensors [].
    """

    keep: Tensor
    flip: Tensor
    metrics: Mapping[str, float | Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimiser step, as observers and metrics.jsonl see it. `metrics` are plain floats by name."""

    iteration: int
    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class IterationReport:
    """One finished iteration: the object written to ``iter_<t>/report.json`` and to the summary."""

    iteration: int
    values: Mapping[str, Any]

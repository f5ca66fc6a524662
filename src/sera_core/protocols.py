"""The roles components play, as protocols, and what a component may ask for. No implementations.

A component is a frozen dataclass whose fields are its options. It never runs a forward pass: it declares `needs` and
the core computes each quantity once. `testing` holds the checks every implementation must pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sera_core.records import (
    BatchStats,
    Candidates,
    Floats,
    PairBatch,
    PairLogps,
    Pairs,
    Prompt,
    Response,
    ScoringLogps,
    Smoothed,
    SourceData,
    TextPrompt,
    Weighted,
)

if TYPE_CHECKING:
    from torch import Tensor

Verdict: TypeAlias = Literal["win", "tie", "loss", "abstain"]
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a component requires the core to compute. The plan takes the union over all components.

    reference: an objective needs log-probs under the training reference; a scorer needs each iterate's own reference.
    initial: the scorer needs log-probs under the initial policy.
    history: how many trained iterates (each with its own reference) the scorer reads, newest first.
    annotations: every scored response must carry an annotated score.
    extrapolation: the smoother's confidences are those of a policy extrapolated away from its reference: token logits
        (1 + extrapolation) policy - extrapolation reference; finite and >= 0, 0 means the policy itself.
    prefixes: prompt prefixes under which the transform needs margins. A prefix stands before the text of the last user
        turn; one that holds ``{prompt}`` is a template for that text instead.
    whole_batch: the reweighter or smoother acts once per optimiser step, on the whole effective batch (all ranks, all
        micro-batches), instead of once per micro-batch. One that keeps a state or says how it weighed always does.
    dataset_every: the reweighter or smoother acts on the whole training set instead, in one forward pass over all
        pairs before the first optimiser step and again every so many epochs, finite and > 0; 0 means the effective
        batch.
    dataset_from: with `dataset_every`, the share of optimiser steps before which the component acts on no measurement,
        from 0 to 1; 1 means never. Training in which no measurement comes later is refused.
    gold: the source must know the right answers.
    targets: the labeler needs prompts that carry a reference answer.
    scores: the labeler or selector reads scores, so that a scorer must be configured.
    """

    reference: bool = False
    initial: bool = False
    history: int = 0
    annotations: bool = False
    extrapolation: float = 0.0
    prefixes: tuple[str, ...] = ()
    whole_batch: bool = False
    dataset_every: float = 0.0
    dataset_from: float = 0.0
    gold: bool = False
    targets: bool = False
    scores: bool = False


@dataclass(frozen=True, slots=True)
class Provides:
    """What a source can give beside pairs: `gold` answers, an initial `policy`, the names of its `prompts` sets."""

    gold: bool = False
    policy: bool = False
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. `temperature` > 0, `top_p` in (0, 1], `max_new_tokens` >= 1, `samples` per prompt >= 1."""

    samples: int = 4
    temperature: float = 0.7
    top_p: float = 0.95
    max_new_tokens: int = 256


class Component(Protocol):
    """Common to all roles: options are the fields of a frozen dataclass, requirements are `needs`."""

    @property
    def needs(self) -> Needs:
        """What the core must compute for this component."""


class Scorer(Component, Protocol):
    """Scores responses; higher is better. A pair's margin is score(chosen) - score(rejected), derived by core."""

    def scores(self, responses: Sequence[Response], logps: ScoringLogps) -> Floats:
        """float64 [n], finite, deterministic, permutation-equivariant in the n responses."""


class Selector(Component, Protocol):
    """Chooses pairs by margin.

    A class attribute ``keeps_all = True`` says that it never leaves a pair out, so that options which could only delay
    its choice are refused.
    """

    def select(self, margins: Floats, pool: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Indices int64 [k] into `margins` [n]: unique, sorted, in range.

        `pool` >= n counts the pairs before any were dropped; a fraction is a fraction of it, so that keeping 30 %
        means the same however many candidates tied. All randomness comes from `rng`.
        """


@runtime_checkable
class SelectsByPrompt(Protocol):
    """A selector that compares the pairs of one prompt with each other. It is asked instead of `select`.

    One that keeps nothing where every prompt has fewer than so many pairs says so with an attribute
    ``pairs_per_prompt``, and data without them are refused before the run.
    """

    def select_by_prompt(
        self, margins: Floats, prompts: NDArray[np.int64], pool: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """As `Selector.select`; `prompts` int64 [n] numbers the prompt of each pair."""


class Labeler(Component, Protocol):
    """Turns several responses per prompt into pairs."""

    def label(self, candidates: Candidates, scores: Sequence[Floats], rng: np.random.Generator) -> Pairs:
        """One pair per prompt at most; `scores[i]` is float64 [samples of prompt i].

        chosen and rejected differ in ids; ties, duplicates, empty responses and prompts with too few distinct
        candidates are dropped and counted.
        """


class Objective(Component, Protocol):
    """A preference loss per pair, seen through the margin h."""

    def margins(self, logps: PairLogps) -> Tensor:
        """Margins h [b] without beta: the log-ratio difference where there is a reference."""

    def losses(self, margins: Tensor) -> Tensor:
        """L(h) [b], no reduction, finite for |h| up to 1e4."""

    def confidence(self, margins: Tensor) -> Tensor:
        """The model's probability of the given label, [b] in [0, 1], increasing in h."""


@runtime_checkable
class Anchored(Protocol):
    """An objective with a term beside the margin loss, such as ORPO's likelihood of the chosen response."""

    def anchor(self, logps: PairLogps) -> Tensor:
        """Per-pair loss [b], added unweighted."""


class Transform(Component, Protocol):
    """Changes margins before the loss, as Sr-DPO does."""

    def apply(self, margins: Tensor, batch: PairBatch) -> Tensor:
        """New margins [b]. The added term carries no gradient; strength 0 returns `margins` unchanged."""


class Smoother(Component, Protocol):
    """Splits each pair between its label and the flipped label: loss = keep L(h) + flip L(-h)."""

    def flip_weights(self, confidence: Tensor, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """(keep [b], flip [b]) without gradient; neutral is (1, 0)."""


@runtime_checkable
class Smoothing(Protocol):
    """A smoother that also says how it split. It is asked instead of `flip_weights`, once per effective batch."""

    def smooth(self, confidence: Tensor, batch: PairBatch) -> Smoothed:
        """What ``flip_weights(confidence, batch)`` gives, with finite metrics under names of their own."""


class Reweighter(Component, Protocol):
    """Weighs the pairs of the effective batch, or of the whole training set (`Needs.dataset_every`)."""

    def weights(self, stats: BatchStats) -> Tensor:
        """[n], >= 0, no gradient, permutation-equivariant; the neutral setting gives ones."""


@runtime_checkable
class Weighing(Protocol):
    """A reweighter that also says how it weighed. It is asked instead of `weights`, once per batch or training set."""

    def weigh(self, stats: BatchStats) -> Weighted:
        """Exactly the weights that ``weights(stats)`` gives, with finite metrics under names of their own.

        A figure that does not exist for these pairs is left out.
        """


class Generator(Component, Protocol):
    """Samples responses from a policy."""

    def generate(
        self, model: Path, prompts: Sequence[Prompt], sampling: Sampling, context: GenerationContext
    ) -> Candidates:
        """`sampling.samples` responses per prompt, ids kept verbatim.

        The draw of sample k of prompt p depends on (context.seed, context.iteration, p.id, k) and the model alone,
        never on batch size or order.
        """


@dataclass(frozen=True, slots=True)
class GenerationContext:
    """Where a generation request stands: run `seed`, `iteration`, a `purpose` name that separates streams.

    `banned` token ids are never sampled; `stop` ids end a response; `dtype` is the precision of the weights and
    `attn_implementation` the kernel of their attention, None for the model's own choice; `progress` is told (done,
    total). `writer` numbers the iterate that writes, for the responses' origin; None means `iteration`.
    """

    seed: int
    iteration: int
    purpose: str
    stop: tuple[int, ...]
    banned: tuple[int, ...] = ()
    dtype: str = "float32"
    attn_implementation: str | None = None
    progress: Progress | None = None
    writer: int | None = None


class Judge(Component, Protocol):
    """Grades single responses or compares two; at least one of the two is supported."""

    def grade(self, responses: Sequence[Response]) -> Floats:
        """float64 [n], higher better."""

    def compare(self, first: Sequence[Response], second: Sequence[Response]) -> tuple[Verdict, ...]:
        """One verdict per prompt, from `first`'s point of view; asked in both orders, undecidable is abstain."""


class Asker(Protocol):
    """Runs the model of a judge that asks one. Results are stored: asking again costs nothing."""

    def answer_logps(self, questions: Sequence[TextPrompt], answers: Sequence[str]) -> Floats:
        """Log p(answer | question), float64 [q, a]: natural-log sums over the answer's tokens, end of turn left out."""

    def replies(
        self, questions: Sequence[TextPrompt], *, samples: int, temperature: float, max_new_tokens: int
    ) -> tuple[tuple[str, ...], ...]:
        """`samples` sampled replies to each question, as text."""

    def rewards(self, responses: Sequence[Response]) -> Floats:
        """float64 [n], the single output of a sequence classifier on each prompt with its response."""


@runtime_checkable
class AsksModel(Protocol):
    """A judge that asks a model, which the core runs: `bind` gives the judge to use.

    `model` is a local folder, a hub name, ``smollm2-135m``, ``initial`` (the run's initial policy) or ``policy`` (the
    newest iterate; only for judging samples to train on).
    """

    @property
    def model(self) -> str:
        """Which model to ask."""

    def bind(self, asker: Asker) -> Judge:
        """This judge with its model. Grades may be nan where it abstains."""


@runtime_checkable
class Accounting(Protocol):
    """A judge that keeps count of how judging went, such as how often the order of two answers decided."""

    def account(self) -> Mapping[str, float]:
        """Named finite figures over everything judged so far, for reports."""


class Source(Component, Protocol):
    """Where preference data comes from.

    `defaults` is a partial configuration used where the user's is silent; it is recorded in the manifest.
    `component_defaults` maps ``role:name`` to option values, used where the configuration gives none.
    """

    provides: ClassVar[Provides]
    defaults: ClassVar[Mapping[str, Any]]
    component_defaults: ClassVar[Mapping[str, Mapping[str, Any]]]

    def load(self, seed: int) -> SourceData:
        """Read everything; splits disjoint, order fixed by `seed`; bad rows counted or refused with DataError."""

    def policy(self, seed: int, cache: Path, progress: Progress | None = None) -> Path:
        """A folder with the source's own initial policy, made once per (options, seed) under `cache`.

        Only called when `provides.policy`.
        """


@runtime_checkable
class MayBeMissing(Protocol):
    """A component that needs something which may not be installed, or not run on this machine."""

    def unavailable(self) -> str | None:
        """Why it cannot be used here and what to do about it, None where it can."""


@runtime_checkable
class Diagnosing(Protocol):
    """A source that can say more about responses to its prompts, such as which parts of the answer are there."""

    def diagnose(self, responses: Sequence[Response]) -> Mapping[str, float]:
        """Named finite means over the responses, for reports only."""


@runtime_checkable
class Stateful(Protocol):
    """A component whose state must survive a checkpoint, such as a moving threshold."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values (numbers, strings, lists, dicts)."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


ROLES: tuple[str, ...] = (
    "scorer",
    "selector",
    "labeler",
    "objective",
    "transform",
    "smoother",
    "reweighter",
    "generator",
    "judge",
    "source",
)

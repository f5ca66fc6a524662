"""What the stages of a run share: the plan, prepared data, policies, log-probs, and whoever watches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sera_core.data.templates import banned_ids
from sera_core.models.load import default_device, load_policy
from sera_core.models.score import score_responses
from sera_core.models.store import LogProbStore
from sera_core.plan import Plan
from sera_core.protocols import Component, GenerationContext, Progress, Sampling
from sera_core.ranks import Ranks
from sera_core.records import Floats, Pair, Pairs, Prompt, Response, SourceData
from sera_core.reporter import Reporter
from sera_core.train.precision import autocast_dtype, cast_to_master
from sera_core.workspace import Stage, Workspace, digest


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy on disk: where it is, the hash of its weights, which iteration made it.

    0 is the initial policy, -1 what that was tuned from.
    """

    iteration: int
    path: Path
    hash: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """The source's data as token ids. `key` identifies content, limits and template."""

    source: SourceData
    pairs: Pairs
    validation: Pairs
    evaluation: tuple[Prompt, ...]
    probes: Mapping[str, Pairs]
    key: str


@dataclass(frozen=True, slots=True)
class Context:
    """One run in progress. `base` is what the initial policy was tuned from, where `policy.base` says so."""

    plan: Plan
    workspace: Workspace
    data: Prepared
    initial: Policy
    tokenizer: PreTrainedTokenizerBase
    template: str
    stop_ids: tuple[int, ...]
    store: LogProbStore
    reporter: Reporter
    base: Policy | None = None

    def stage(
        self,
        name: str,
        where: str,
        inputs: Mapping[str, Any],
        compute: Callable[[Path, Progress], None],
        *,
        resumable: bool = False,
        together: bool = False,
    ) -> Stage:
        """Run or reuse a stage, telling the reporter; the arguments are those of `Workspace.stage`."""
        progress = self.reporter.stage_started(where)
        stage = self.workspace.stage(
            name, where, inputs, lambda folder: compute(folder, progress), resumable=resumable, together=together
        )
        self.reporter.stage_finished(where, stage.seconds, stage.reused)
        return stage

    @property
    def ranks(self) -> Ranks:
        """The processes that share this run."""
        return self.workspace.ranks

    def load(self, policy: Policy) -> PreTrainedModel:
        """The policy's model, in evaluation mode, in the run's precision."""
        settings = self.plan.config.policy
        return load_policy(policy.path, dtype=settings.dtype, attn_implementation=settings.attn_implementation)

    @property
    def numerics(self) -> list[str]:
        """What changes a forward pass beside the weights, for the keys of everything a model computed."""
        settings = self.plan.config.policy
        return [settings.dtype, settings.attn_implementation or "default"]

    def logps(self, policy: Policy, responses: Sequence[Response], progress: Progress | None = None) -> Floats:
        """Summed log-probs float64 [n] under a policy, through the store. Rank 0 calls it first, or alone."""
        return self._scored(lambda: self.load(policy), [policy.hash, *self.numerics], responses, progress)

    def training_logps(
        self,
        policy: Policy,
        responses: Sequence[Response],
        training: Mapping[str, Any],
        progress: Progress | None = None,
    ) -> Floats:
        """As `logps`, in the precision in which a training with those TrainingArguments fields computes the policy's.

        In half precision the same weights give sums that differ by more than a training step changes.
        """
        settings = self.plan.config.policy
        adapter = settings.lora is not None
        half = autocast_dtype(getattr(torch, settings.dtype), training, adapter)
        if half is None:
            return self.logps(policy, responses, progress)

        def load() -> PreTrainedModel:
            model = self.load(policy)
            if not adapter:
                cast_to_master(model)
            return model

        scorer = [policy.hash, *self.numerics, "autocast", str(half).removeprefix("torch."), "frozen" * adapter]
        with torch.autocast(default_device(), dtype=half):
            return self._scored(load, [part for part in scorer if part], responses, progress)

    def _scored(
        self,
        load: Callable[[], PreTrainedModel],
        scorer: Sequence[str],
        responses: Sequence[Response],
        progress: Progress | None,
    ) -> Floats:
        sums, _ = score_responses(
            load,
            "-".join(scorer),
            responses,
            self.template,
            self.store,
            token_budget=self.plan.config.scoring.token_budget,
            progress=progress,
            meter=self.workspace.meter,
        )
        return sums

    def log_ratios(self, policy: Policy, responses: Sequence[Response], progress: Progress | None = None) -> Floats:
        """Log-ratio log pi(y|x) - log pi_initial(y|x), float64 [n]."""
        return self.logps(policy, responses, progress) - self.logps(self.initial, responses, progress)

    def component(self, role: str, name: str, built: Component) -> str:
        """What identifies a component in a stage's key: where it came from and all its options."""
        return f"{self.plan.provenance[f'{role}:{name}']} {built!r}"

    def judge(self) -> str | None:
        """What identifies the evaluation judge in a stage's key, whichever name chose it; None without one."""
        if self.plan.judge is None or self.plan.judge_name is None:
            return None
        return self.component("judge", self.plan.judge_name, self.plan.judge)

    def generation(self, policy: Policy, iteration: int, purpose: str, progress: Progress | None) -> GenerationContext:
        """Seeds, stop tokens and precision for a generation request to `policy`."""
        return GenerationContext(
            seed=self.plan.config.seed,
            iteration=iteration,
            purpose=purpose,
            stop=self.stop_ids,
            banned=banned_ids(self.tokenizer),
            writer=policy.iteration,
            attn_implementation=self.plan.config.policy.attn_implementation,
            dtype=self.plan.config.policy.dtype,
            progress=progress,
        )


def prompts_key(prompts: Sequence[Prompt]) -> str:
    """A hash of all that is known about prompts, in order: ids, tokens, reference answers, what a judge reads."""
    return digest([[p.id, p.ids.tolist(), p.source.target, dict(p.source.meta)] for p in prompts])


def responses_key(responses: Sequence[Response]) -> str:
    """A hash of responses with their prompts and annotated scores, in order."""
    total = hashlib.blake2b(digest_size=16)
    for response in responses:
        known = (response.prompt.id, len(response.prompt.ids), len(response.ids), response.score)
        total.update(repr(known).encode())
        total.update(response.prompt.ids.astype("<i4").tobytes() + response.ids.astype("<i4").tobytes())
    return total.hexdigest()


def pairs_key(pairs: Sequence[Pair]) -> str:
    """A hash of what training reads of pairs, in order: ids, tokens, what is known about the label."""
    total = hashlib.blake2b(digest_size=16)
    for pair in pairs:
        total.update(repr((pair.id, pair.flipped, len(pair.prompt.ids), len(pair.chosen.ids))).encode())
        for ids in (pair.prompt.ids, pair.chosen.ids, pair.rejected.ids):
            total.update(ids.astype("<i4").tobytes())
    return total.hexdigest()


def sampling_key(sampling: Sampling) -> dict[str, Any]:
    """Sampling settings for a stage's key."""
    return asdict(sampling)

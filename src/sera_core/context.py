"""What the stages of a run share: the plan, prepared data, policies, log-probs, and whoever watches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sera_core.models.load import load_policy
from sera_core.models.score import score_responses
from sera_core.models.store import LogProbStore
from sera_core.plan import Plan
from sera_core.protocols import Component, GenerationContext, Progress, Sampling
from sera_core.records import Floats, Pairs, Prompt, Response, SourceData
from sera_core.reporter import Reporter
from sera_core.workspace import Stage, Workspace, digest


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy on disk: which iteration made it (0: the initial one), where it is, the hash of its weights."""

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
    """One run in progress."""

    plan: Plan
    workspace: Workspace
    data: Prepared
    initial: Policy
    tokenizer: PreTrainedTokenizerBase
    template: str
    stop_ids: tuple[int, ...]
    store: LogProbStore
    reporter: Reporter

    def stage(
        self,
        name: str,
        where: str,
        inputs: Mapping[str, Any],
        compute: Callable[[Path, Progress], None],
        *,
        resumable: bool = False,
    ) -> Stage:
        """Run or reuse a stage, telling the reporter; the arguments are those of `Workspace.stage`."""
        progress = self.reporter.stage_started(where)
        stage = self.workspace.stage(name, where, inputs, lambda folder: compute(folder, progress), resumable=resumable)
        self.reporter.stage_finished(where, stage.seconds, stage.reused)
        return stage

    def load(self, policy: Policy) -> PreTrainedModel:
        """The policy's model, in evaluation mode, in the run's precision."""
        settings = self.plan.config.policy
        return load_policy(policy.path, dtype=settings.dtype, attn_implementation=settings.attn_implementation)

    def logps(self, policy: Policy, responses: Sequence[Response], progress: Progress | None = None) -> Floats:
        """Summed log-probs float64 [n] under a policy, through the store."""
        sums, _ = score_responses(
            lambda: self.load(policy),
            f"{policy.hash}-{self.plan.config.policy.dtype}",
            responses,
            self.template,
            self.store,
            token_budget=self.plan.config.scoring.token_budget,
            progress=progress,
        )
        return sums

    def log_ratios(self, policy: Policy, responses: Sequence[Response], progress: Progress | None = None) -> Floats:
        """Log-ratio log pi(y|x) - log pi_initial(y|x), float64 [n]."""
        return self.logps(policy, responses, progress) - self.logps(self.initial, responses, progress)

    def component(self, role: str, name: str, built: Component) -> str:
        """What identifies a component in a stage's key: where it came from and all its options."""
        return f"{self.plan.provenance[f'{role}:{name}']} {built!r}"

    def judge(self) -> str | None:
        """What identifies the judge in a stage's key, whichever name chose it; None without one."""
        if self.plan.judge is None:
            return None
        origin = next(origin for part, origin in self.plan.provenance.items() if part.startswith("judge:"))
        return f"{origin} {self.plan.judge!r}"

    def generation(self, iteration: int, purpose: str, progress: Progress | None) -> GenerationContext:
        """Seeds and stop tokens for a generation request."""
        return GenerationContext(
            seed=self.plan.config.seed,
            iteration=iteration,
            purpose=purpose,
            stop=self.stop_ids,
            dtype=self.plan.config.policy.dtype,
            progress=progress,
        )


def prompts_key(prompts: Sequence[Prompt]) -> str:
    """A hash of prompt ids and token ids, in order."""
    return digest([[prompt.id, prompt.ids.tolist()] for prompt in prompts])


def sampling_key(sampling: Sampling) -> dict[str, Any]:
    """Sampling settings for a stage's key."""
    return asdict(sampling)

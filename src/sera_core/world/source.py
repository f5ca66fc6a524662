"""The world as a source of pairs, prompts, and an initial policy."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from sera_core.errors import ConfigError
from sera_core.protocols import Needs, Progress, Provides
from sera_core.records import Message, Response, SourceData, TextPair, TextPrompt
from sera_core.world.diagnostics import diagnose
from sera_core.world.questions import content, take
from sera_core.world.rules import Question, Rules
from sera_core.world.spec import DEMOS, MAX_PROMPT_TOKENS, MAX_RESPONSE_TOKENS, PROBE, QUALITY, VERSION
from sera_core.world.writers import comparisons, demonstrations


@dataclass(frozen=True)
class World:
    """A synthetic preference task with known right answers.

    noise: share in [0, 1] of training labels flipped. rho: how far in [-1, 1] fillers go with skill, a spurious cue.
    pairs, fresh, evaluation, validation: how many training pairs, unlabelled prompts, evaluation prompts and held-out
    pairs with clean labels.
    """

    noise: float = 0.2
    rho: float = 0.2
    pairs: int = 1536
    fresh: int = 4608
    evaluation: int = 512
    validation: int = 256

    provides: ClassVar[Provides] = Provides(gold=True, policy=True, prompts=("fresh", "sft"))
    defaults: ClassVar[Mapping[str, Any]] = {
        "training": {
            "learning_rate": 1e-4,
            "per_device_train_batch_size": 64,
            "gradient_accumulation_steps": 1,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 0.1,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
        },
        "generated": {"temperature": 0.7, "top_p": 0.95, "max_new_tokens": MAX_RESPONSE_TOKENS},
        "evaluation": {
            "sampling": {"temperature": 0.7, "top_p": 0.95, "max_new_tokens": MAX_RESPONSE_TOKENS, "samples": 1}
        },
        "tokens": {"max_prompt_tokens": MAX_PROMPT_TOKENS, "max_response_tokens": MAX_RESPONSE_TOKENS},
    }
    component_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "objective:dpo": {"beta": 0.5},
        "objective:hinge": {"beta": 0.5},
        "objective:ipo": {"beta": 0.15},
        "objective:simpo": {"beta": 2.0, "gamma": 0.5},
        "smoother:constant": {"epsilon": 0.2},
        "smoother:unbiased": {"epsilon": 0.2},
        "transform:self_refinement": {"prefix": QUALITY},
    }

    def __post_init__(self) -> None:
        """Refuses options out of range.

        Raises:
            ConfigError: an option is out of range.
        """
        _within("noise", self.noise, 0, 1)
        _within("rho", self.rho, -1, 1)
        for name, least in (("pairs", 1), ("fresh", 0), ("evaluation", 1), ("validation", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"source.{name} must be at least {least}, got {getattr(self, name)}.")

    @property
    def needs(self) -> Needs:
        """Nothing."""
        return Needs()

    def load(self, seed: int) -> SourceData:
        """Everything the world offers under `seed`.

        Pairs keep their replies and order at every `noise`. ``sft`` prompts carry demonstrations as targets;
        ``probes["rho0"]`` holds clean pairs in which fillers say nothing about skill.

        Raises:
            ConfigError: `seed` is negative.
        """
        rules = Rules.draw(seed)
        pairs = _pairs(rules, seed, "pairs", self.pairs, self.rho, self.noise)
        validation = _pairs(rules, seed, "validation", self.validation, self.rho, 0.0)
        asked = {
            name: take(seed, name, count) for name, count in (("fresh", self.fresh), ("evaluation", self.evaluation))
        }
        fresh, evaluation = (
            tuple(_prompt(rules, f"{name}-{i:05d}", question) for i, question in enumerate(asked[name]))
            for name in ("fresh", "evaluation")
        )
        return SourceData(
            name="world",
            pairs=pairs,
            validation=validation,
            evaluation=evaluation,
            prompts={"fresh": fresh, "sft": _demos(seed, DEMOS)},
            probes={"rho0": _pairs(rules, seed, "probe", PROBE, 0.0, 0.0)},
            fingerprint=self._fingerprint(seed, pairs),
        )

    def policy(self, seed: int, cache: Path, progress: Progress | None = None) -> Path:
        """The folder of the initial policy of `seed`, trained on demonstrations once and cached; options do not matter.

        Raises:
            ConfigError: `seed` is negative.
            StoreError: the cache cannot be written.
        """
        from sera_core.world.policy import cached_policy

        return cached_policy(seed, cache, progress)

    def diagnose(self, responses: Sequence[Response]) -> dict[str, float]:
        """Fillers, coverage, right answers, extra words and how often responses end by themselves.

        Raises:
            DataError: there is no response, or a prompt is not of the world.
        """
        return diagnose(responses)

    def _fingerprint(self, seed: int, pairs: tuple[TextPair, ...]) -> str:
        options = tuple((field.name, getattr(self, field.name)) for field in fields(self))
        content = [(pair.id, pair.prompt.messages, pair.chosen, pair.rejected) for pair in pairs]
        return hashlib.sha256(repr((VERSION, seed, options, content)).encode()).hexdigest()


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"source.{name} must lie between {low} and {high}, got {value}.")


def _prompt(rules: Rules, name: str, question: Question, target: str | None = None) -> TextPrompt:
    return TextPrompt(name, (Message("user", content(question)),), target, rules.meta(question))


def _pairs(rules: Rules, seed: int, name: str, count: int, rho: float, noise: float) -> tuple[TextPair, ...]:
    pairs = []
    for i, comparison in enumerate(islice(comparisons(rules, seed, name, rho), count)):
        flipped = comparison.u < noise
        best, worst = " ".join(comparison.better), " ".join(comparison.worse)
        chosen, rejected = (worst, best) if flipped else (best, worst)
        prompt = _prompt(rules, f"{name}-{i:05d}", comparison.question)
        pairs.append(TextPair(prompt.id, prompt, chosen, rejected, flipped=flipped))
    return tuple(pairs)


@lru_cache(maxsize=2)
def _demos(seed: int, count: int) -> tuple[TextPrompt, ...]:
    """The first demonstrations of a seed. All its settings share them, and writing them takes seconds."""
    rules = Rules.draw(seed)
    drawn = islice(demonstrations(rules, seed), count)
    return tuple(_prompt(rules, f"sft-{i:05d}", question, " ".join(words)) for i, (question, words) in enumerate(drawn))

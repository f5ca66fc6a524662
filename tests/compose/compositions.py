"""Every combination of loss, transform, smoother and reweighter, and a place where it trains in two short steps."""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

import sera_core
from sera_core.testing.tiny import WORDS

LOSSES = ("dpo", "ipo", "hinge", "simpo", "orpo")
TRANSFORMS = (None, "self_refinement")
SMOOTHERS = ("none", "constant", "unbiased", "spa")
REWEIGHTERS = ("uniform", "wasserstein", "kl", "cvar", "dr_dpo")
NEUTRAL = {"transform": None, "smoother": "none", "reweighter": "uniform"}
WITHOUT_REFERENCE = frozenset({"simpo", "orpo"})


@dataclass(frozen=True)
class Combination:
    loss: str
    transform: str | None
    smoother: str
    reweighter: str

    def __str__(self):
        return "-".join(part or "plain" for part in (self.loss, self.transform, self.smoother, self.reweighter))

    @property
    def valid(self):
        """De-coupled detection mixes the policy's token logits with a reference's, so there must be a reference."""
        return not (self.smoother == "spa" and self.loss in WITHOUT_REFERENCE)

    def without(self, role):
        """The same combination with the neutral component in one role, None where it has that already."""
        neutral = NEUTRAL[role]
        return None if getattr(self, role) == neutral else dataclasses.replace(self, **{role: neutral})

    def objective(self, **smoother):
        return {
            "loss": self.loss,
            "transforms": [] if self.transform is None else [{"name": self.transform, "prefix": "one {prompt}"}],
            "smoother": {"name": self.smoother, **smoother},
            "reweighter": self.reweighter,
        }


ALL = tuple(Combination(*names) for names in itertools.product(LOSSES, TRANSFORMS, SMOOTHERS, REWEIGHTERS))


def write_pairs(path):
    """Sixteen conversational pairs with distinct prompts and answers, every third one labelled against the others."""
    rows = []
    for i, (first, second) in enumerate(itertools.islice(itertools.permutations(WORDS[:6], 2), 16)):
        answers = (f"{first} is {second}", f"not {second}")[:: -1 if i % 3 == 0 else 1]
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in answers)
        prompt = [{"role": "user", "content": f"what is {first} and {second}"}]
        rows.append({"id": f"row-{i}", "prompt": prompt, "chosen": chosen, "rejected": rejected})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def settings(source, model, objective, steps=2):
    """A run of two optimiser steps of all thirteen pairs, in micro-batches of four.

    The first step moves the policy as far as gradients say: from the second on it is no longer its own reference, so
    that confidences, thresholds and worst-case weights have something to tell apart.
    """
    return {
        "name": "composed",
        "source": {"name": "preferences", "path": str(source), "evaluation": 1, "validation": 2},
        "policy": {"model": str(model)},
        "objective": objective,
        "tokens": {"max_prompt_tokens": 32, "max_response_tokens": 8},
        "training": {
            "max_steps": steps,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 4,
            "optim": "sgd",
            "learning_rate": 0.5,
            "warmup_steps": 0,
        },
        "evaluation": {"kl_prompts": 1, "sampling": {"samples": 1, "max_new_tokens": 2}},
    }


def weights(model):
    """All weights of a saved model in one row."""
    values = load_file(model / "model.safetensors")
    return torch.cat([values[name].flatten() for name in sorted(values)])


@dataclass(frozen=True)
class Outcome:
    """The metrics of every step, and the final weights."""

    steps: list[dict[str, float]]
    weights: torch.Tensor


@dataclass(frozen=True)
class Place:
    """A folder with a tiny policy and pairs, and what was trained there so far."""

    folder: Path
    model: Path
    pairs: Path
    outcomes: dict[str, Outcome]

    def run(self, objective, steps=2, **options):
        """The outcome of an objective, trained when it is first asked for."""
        key = json.dumps([objective, steps], sort_keys=True)
        if key not in self.outcomes:
            out = self.folder / f"run-{len(self.outcomes)}"
            chosen = settings(self.pairs, self.model, objective, steps)
            result = sera_core.run(chosen, out=out, cache=self.folder / "cache", **options)
            lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            self.outcomes[key] = Outcome([json.loads(line) for line in lines], weights(result.model))
        return self.outcomes[key]

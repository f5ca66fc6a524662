"""Every combination of loss, transform, smoother and reweighter, and the settings that train it in two short steps."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass

from sera_core.testing.tiny import WORDS

LOSSES = ("dpo", "ipo", "hinge", "simpo", "orpo")
TRANSFORMS = (None, "self_refinement")
SMOOTHERS = ("none", "constant", "unbiased", "spa")
REWEIGHTERS = ("uniform", "wasserstein", "kl", "cvar", "dr_dpo")
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

    def objective(self, **smoother):
        return {
            "loss": self.loss,
            "transforms": [] if self.transform is None else [{"name": self.transform, "prefix": "one {prompt}"}],
            "smoother": {"name": self.smoother, **smoother},
            "reweighter": self.reweighter,
        }


ALL = tuple(Combination(*names) for names in itertools.product(LOSSES, TRANSFORMS, SMOOTHERS, REWEIGHTERS))


def write_pairs(path):
    """Sixteen conversational pairs with distinct prompts and answers."""
    rows = []
    for i, (first, second) in enumerate(itertools.islice(itertools.permutations(WORDS[:6], 2), 16)):
        answers = (f"{first} is {second}", f"not {second}")
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in answers)
        prompt = [{"role": "user", "content": f"what is {first} and {second}"}]
        rows.append({"id": f"row-{i}", "prompt": prompt, "chosen": chosen, "rejected": rejected})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def settings(source, model, objective):
    """A run of two optimiser steps of four pairs each."""
    return {
        "name": "composed",
        "source": {"name": "preferences", "path": str(source), "evaluation": 1, "validation": 2},
        "policy": {"model": str(model)},
        "objective": objective,
        "tokens": {"max_prompt_tokens": 32, "max_response_tokens": 8},
        "training": {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3},
        "evaluation": {"kl_prompts": 1, "sampling": {"samples": 1, "max_new_tokens": 2}},
    }

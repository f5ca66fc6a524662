"""Run as a script, alone or under torchrun: trains the same tiny models and writes them to a folder."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import train_cases as cases

from sera_core.builtin.orpo import ORPO
from sera_core.protocols import Stateful
from sera_core.train.lora import LoraOptions
from sera_core.train.run import train

RECIPES = {
    "dpo": dict,
    "orpo": lambda: {"algebra": cases.algebra(ORPO())},
    "whole": lambda: {"algebra": cases.algebra(smoother=cases.MovingThreshold(), reweighter=cases.Softmax())},
    "told": lambda: {"algebra": cases.algebra(reweighter=cases.Telling()), "pairs": mixed()},
    "dataset": lambda: {
        "algebra": cases.algebra(smoother=cases.MovingThreshold(), reweighter=cases.Telling(every=0.6)),
        "pairs": mixed(),
    },
    "long": lambda: {"algebra": cases.algebra(reweighter=cases.Telling()), "token_budget": 20},
    "lora": lambda: {"lora": LoraOptions(r=2)},
    "refined": lambda: refined(cases.refined(cases.Softmax())),
    "refined dataset": lambda: refined(cases.refined(cases.Telling(every=0.6), "dataset")),
    "refined lora": lambda: refined(cases.refined()) | {"lora": LoraOptions(r=2)},
}


def mixed():
    return cases.make_pairs(17, flipped=(True, False, None))


def refined(algebra):
    pairs = mixed()
    extras = {"load_reference": cases.tiny_model, "prefixed": cases.prefixed(pairs, cases.tiny_model())}
    return {"algebra": algebra, "pairs": pairs, "training": {"learning_rate": 0.5}, **extras}


def main(root, size, accumulate):
    training = {"optim": "sgd", "learning_rate": 0.05, "per_device_train_batch_size": size}
    training["gradient_accumulation_steps"] = accumulate
    for name, changes in RECIPES.items():
        # 17 pairs: the last effective batch holds one pair, so that a second rank has none.
        changed = {"pairs": cases.make_pairs(17), "training": {}} | changes()
        changed["training"] = training | changed["training"]
        request = cases.request(root / name, **changed)
        result = train(request, cases.ignore)
        smoother = request.algebra.smoother
        if isinstance(smoother, Stateful):
            rank = os.environ.get("RANK", "0")
            (root / name / f"smoother-{rank}.json").write_text(json.dumps(smoother.state_dict()))
        assert json.loads(result.steps_file.read_text().splitlines()[-1])["pairs"] == 1.0


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

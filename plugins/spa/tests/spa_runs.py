"""Runs that take seconds, and what they leave behind."""

import itertools
import json

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import sera_core
from sera_core import configfile
from sera_core.testing.tiny import WORDS

TINY = (
    "tokens.max_prompt_tokens=32",
    "tokens.max_response_tokens=16",
    "generated.max_new_tokens=6",
    "training.per_device_train_batch_size=2",
    "training.gradient_accumulation_steps=2",
    "training.learning_rate=1.0e-2",
    "training.warmup_steps=0",
    "evaluation.sampling.max_new_tokens=4",
)


def write_pairs(path, count=24):
    """Conversational pairs in the tiny policy's vocabulary."""
    words = [word for word in WORDS if word not in ("what", "is")]
    rows = [
        {
            "prompt": [{"role": "user", "content": f"what is {first} and {second}"}],
            "chosen": [{"role": "assistant", "content": f"{first} is {second}"}],
            "rejected": [{"role": "assistant", "content": " ".join(["not", second, "red"][: 2 + i % 2])}],
        }
        for i, (first, second) in enumerate(itertools.islice(itertools.permutations(words, 2), count))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def settings(preset, *overrides):
    return configfile.override(configfile.read(configfile.locate(preset)), overrides)


def run(folder, preset, *overrides):
    """The folder of a run; runs under one folder share a cache."""
    out = folder / str(len(list(folder.iterdir())))
    return sera_core.run(settings(preset, *overrides), out=out, cache=folder / "cache").out


def weights_of(model):
    return (model / "model.safetensors").read_bytes()


def steps_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def read(out, name):
    return json.loads((out / name).read_text(encoding="utf-8"))


def log_probs(model, responses):
    """Summed log-probs by plain forward passes, one response at a time."""
    policy = AutoModelForCausalLM.from_pretrained(model)
    sums = []
    for response in responses:
        ids = torch.tensor([[*response.prompt.ids.tolist(), *response.ids.tolist()]])
        with torch.no_grad():
            logps = policy(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        sums.append(float(logps[len(response.prompt.ids) - 1 :].sum()))
    return np.array(sums)


def rewards_of_pairs(pairs, policy, reference):
    """Implicit rewards [n] of the chosen and of the rejected responses."""
    both = [r for pair in pairs for r in (pair.chosen, pair.rejected)]
    rho = log_probs(policy, both) - (0.0 if reference is None else log_probs(reference, both))
    return rho[::2], rho[1::2]

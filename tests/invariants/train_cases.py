"""Tiny models, pairs and requests that the training invariants share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sera_core.builtin.dpo import DPO
from sera_core.builtin.smoothers import NoSmoothing
from sera_core.builtin.uniform import Uniform
from sera_core.models.logps import Group, group_logps
from sera_core.protocols import Needs
from sera_core.records import Pair, Pairs, Prompt, Response, TextPrompt, Weighted
from sera_core.train.batch import Prefixed
from sera_core.train.run import TrainRequest
from sera_core.train.step import Algebra
from sera_plugin_spa import SelfRefinement
from sera_plugin_srdpo import SelfRefinement as PrefixRefinement

VOCABULARY = 40
PREFIX = "better"


def tiny_model(seed=0, attention_dropout=0.0):
    generator = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            attention_dropout=attention_dropout,
            initializer_range=0.2,
        )
    )
    torch.random.set_rng_state(generator)
    return model.eval()


def ignore(_):
    """An observer that does nothing."""


def tokenizer():
    words = {f"w{i}": i for i in range(VOCABULARY)}
    special = {"unk_token": "w0", "pad_token": "w1"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), **special)  # noqa: S106


def make_pairs(count=20, seed=0, flipped=None):
    rng = np.random.default_rng(seed)

    def ids(low, high):
        return rng.integers(3, VOCABULARY, rng.integers(low, high)).astype(np.int32)

    pairs = []
    for i in range(count):
        prompt = Prompt(f"p{i}", ids(2, 7), TextPrompt(f"p{i}", "text"))
        chosen, rejected = (Response(prompt, ids(1, 9), "", "given", "offline") for _ in range(2))
        known = flipped[i % len(flipped)] if isinstance(flipped, tuple) else flipped
        pairs.append(Pair(f"pair{i}", chosen, rejected, "test", "hash", flipped=known))
    return Pairs(tuple(pairs))


def measure(model, pairs):
    groups = [Group(p.prompt.ids, (p.chosen.ids, p.rejected.ids)) for p in pairs.pairs]
    with torch.no_grad():
        sums = group_logps(model, groups, token_budget=64).sums.numpy()
    return sums[0::2], sums[1::2]


def prefixed(pairs, model=None):
    """Every prompt behind two more tokens; references by `model`."""
    prompts = tuple(np.concatenate([[4, 5], p.prompt.ids]).astype(np.int32) for p in pairs.pairs)
    reference = None
    if model is not None:
        groups = [Group(ids, (p.chosen.ids, p.rejected.ids)) for ids, p in zip(prompts, pairs.pairs, strict=True)]
        with torch.no_grad():
            sums = group_logps(model, groups).sums.numpy()
        reference = sums[0::2], sums[1::2]
    return {PREFIX: Prefixed(prompts, reference)}


@dataclasses.dataclass(frozen=True)
class Softmax:
    """Weights n softmax(loss / tau): depends on the whole batch."""

    tau: float = 0.1

    @property
    def needs(self):
        return Needs(whole_batch=True)

    def weights(self, stats):
        return torch.softmax(stats.losses / self.tau, 0) * len(stats.losses)


@dataclasses.dataclass(frozen=True)
class Telling(Softmax):
    """Softmax that says what it saw; with `every`, of the whole training set."""

    every: float = 0.0

    @property
    def needs(self):
        return Needs(whole_batch=self.every == 0, dataset_every=self.every)

    def weigh(self, stats):
        seen = {"seen": len(stats.losses), "hardest": stats.losses.max(), "progress_seen": stats.progress}
        return Weighted(self.weights(stats), seen)


@dataclasses.dataclass
class MovingThreshold:
    """Smooths pairs below the running mean confidence: its state depends on every pair seen so far, in order."""

    rate: float = 0.2

    def __post_init__(self):
        self.mean = 0.5

    @property
    def needs(self):
        return Needs()

    def flip_weights(self, confidence, batch):
        flips = []
        for value in confidence.tolist():
            flips.append(self.rate if value < self.mean else 0.0)
            self.mean = 0.9 * self.mean + 0.1 * value
        flip = torch.tensor(flips, device=confidence.device)
        return 1 - flip, flip

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state["mean"]


def refined(reweighter=None, scope="window"):
    """Everything that trains on more than log-probs: SPA's smoother far from the reference, margins under a prefix."""
    memory = {"window": {"window": 12}, "dataset": {"refresh": 0.5}}[scope]
    doubt = SelfRefinement(alpha=0.3, share=0.3, warmup=0.2, extrapolation=0.5, threshold_scope=scope, **memory)
    return algebra(smoother=doubt, transforms=(PrefixRefinement(strength=0.5, prefix=PREFIX),), reweighter=reweighter)


def algebra(objective=None, smoother=None, reweighter=None, transforms=()):
    return Algebra(objective or DPO(), transforms, smoother or NoSmoothing(), reweighter or Uniform())


def request(workdir: Path, **changes) -> TrainRequest:
    model_seed = changes.pop("model_seed", 0)
    load = changes.pop("load_model", lambda: tiny_model(model_seed))
    pairs = changes.pop("pairs", None) or make_pairs()
    chosen = changes.pop("algebra", None) or algebra()
    if "reference" not in changes:
        changes["reference"] = measure(load(), pairs) if chosen.objective.needs.reference else None
    reference = changes.pop("reference")
    training = {
        "learning_rate": 1e-2,
        "num_train_epochs": None if "max_steps" in changes.get("training", {}) else 2,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        **changes.pop("training", {}),
    }
    fields = {
        "seed": 3,
        "iteration": 1,
        "tokenizer": tokenizer(),
        "card": "# Card\n",
        "policy_is_reference": reference is not None,
    }
    return TrainRequest(
        pairs=pairs,
        reference=reference,
        algebra=chosen,
        training=training,
        workdir=workdir,
        load_model=load,
        **(fields | changes),
    )

"""Folders that look like runs and ablations to a report, with evidence that can be worked out by hand."""

from __future__ import annotations

import json

import numpy as np

from sera_core.data.tables import write_candidates
from sera_core.evidence import ANCESTRAL, HELD_OUT, SAMPLES, TRAINED, write_evidence
from sera_core.records import Candidates, Prompt, Response, TextPrompt

PROMPTS = ("a", "b", "c", "d")


def settings(name):
    """What an ablation asks of an arm."""
    return {"name": name, "objective": {"loss": "dpo"}, "source": {"name": "world"}}


def manifest(name="run", seed=0, iterations=1, **changes):
    return {
        "name": name,
        "seed": seed,
        "config": [{}] * iterations,
        "settings": settings(name) | {"seed": seed},
        "components": {"objective:dpo": "dpo@sera-core==0.1.0"},
        "versions": {"python": "3.11.0"},
        "data": {
            "source": "world",
            "fingerprint": "f" * 32,
            "pairs": 4,
            "validation": 2,
            "evaluation_prompts": 4,
            "template": "t" * 32,
        },
        "initial_policy": {"path": "p", "weights": "w" * 32},
        "processes": 1,
        "final_iteration": iterations,
        "attention": ["packed_sdpa"],
    } | changes


def report(iteration=1, **changes):
    return {
        "iteration": iteration,
        "dropped": {},
        "win_rate_vs_initial": {"mean": 0.75, "low": 0.4, "high": 0.9},
        "gold_reward": {"mean": 0.5, "low": 0.3, "high": 0.7},
        "kl_to_initial": 1.0,
        "response_length": 5.0,
        "eos_rate": 1.0,
        "chosen_logp_drift": -0.5,
        "accuracy": 0.75,
        "margin_mean": 0.1,
        "selection": {"offline": {"pairs": 4, "flipped_share": 0.25}},
    } | changes


def samples(gold=(1.0, 2.0, 3.0, 4.0), points=(1.0, 1.0, 0.5, 0.5), reward=(1.0, 2.0, 3.0, 5.0), length=(4, 5, 6, 7)):
    return {
        "prompt": list(PROMPTS),
        "points": points,
        "gold": None if gold is None else np.array(gold),
        "reward": np.array(reward),
        "length": list(length),
        "ended": [True] * 4,
    }


def trained(margin=(-1.0, 0.0, 1.0, 2.0), weight=(1.0,) * 4, flipped=(True, False, False, None), pair="wxyz"):
    return {
        "pair": list(pair),
        "margin": np.array(margin),
        "confidence": 1 / (1 + np.exp(-np.array(margin))),
        "weight": np.array(weight),
        "flip": np.zeros(4),
        "flipped": list(flipped),
        "origin": ["offline"] * 4,
    }


def stage(folder, name, key, seconds, tokens=0):
    folder.mkdir(parents=True, exist_ok=True)
    work = (
        {"forward_tokens": {"packed_sdpa": tokens}, "useful_tokens": tokens, "scored": 0, "stored": 0} if tokens else {}
    )
    record = {"stage": name, "key": key, "seconds": seconds, "work": work, "files": {}}
    (folder / "stage.json").write_text(json.dumps(record), encoding="utf-8")


def write_run(
    folder, name="run", seed=0, iterations=1, evidence=True, sampled=None, pairs=None, reports=None, **changes
):
    """A finished run; every iteration has the same evidence."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(manifest(name, seed, iterations, **changes)), encoding="utf-8")
    stage(folder / "data", "data", "data", 1.0)
    write_initial(folder)
    for t in range(1, iterations + 1):
        stage(folder / f"iter_{t}" / "train", "train", f"train {name} {seed} {t}", 4.0, tokens=1000)
        stage(folder / f"iter_{t}" / "evaluate", "evaluate", f"evaluate {name} {seed} {t}", 2.0)
        told = report(t, **((reports or {}).get(t, {})))
        (folder / f"iter_{t}" / "report.json").write_text(json.dumps(told), encoding="utf-8")
        if evidence:
            write_tables(folder / f"iter_{t}", sampled or samples(), pairs or trained())
    return folder


def write_tables(folder, sampled, pairs):
    write_evidence(folder / "evaluate" / "samples.arrow", SAMPLES, sampled)
    held = {"prompt": ["a", "b"], "margin": np.array([1.0, -1.0]), "chosen_length": [4, 6], "rejected_length": [3, 3]}
    write_evidence(folder / "evaluate" / "pairs.arrow", HELD_OUT, held)
    drawn = {"prompt": list(PROMPTS), "log_ratio": np.array([0.5, 1.0, 1.0, 1.5])}
    write_evidence(folder / "evaluate" / "ancestral.arrow", ANCESTRAL, drawn)
    write_evidence(folder / "train" / "pairs.arrow", TRAINED, pairs)


def write_initial(folder, length=5, ended=True):
    """The initial policy's answers, all of one length."""
    prompts = [Prompt(name, np.array([9], dtype=np.int32), TextPrompt(name, "ask")) for name in PROMPTS]
    ids, reason = np.arange(length, dtype=np.int32), "stop" if ended else "length"
    groups = tuple((Response(prompt, ids, "text", reason, "policy:0"),) for prompt in prompts)
    write_candidates(folder / "iter_0" / "sample" / "candidates.arrow", Candidates(tuple(prompts), groups))


def write_plan(folder, arms, seeds=(0, 1), baseline=None, families=None, points=None, **changes):
    """``ablation.json`` with variants called like their arms."""
    folder.mkdir(parents=True, exist_ok=True)
    described = [
        {"name": arm, "variant": arm, "point": (points or {}).get(arm, {}), "settings": settings(arm)} for arm in arms
    ]
    plan = {"name": "small", "description": "Two arms.", "arms": described, "seeds": list(seeds)}
    plan |= {"baseline": baseline or {}, "families": families or {}} | changes
    (folder / "ablation.json").write_text(json.dumps(plan), encoding="utf-8")


def write_ablation(folder, arms=("dpo", "sera"), seeds=(0, 1), **plan):
    """An ablation whose arms are all finished and alike but for gold: each arm has one more than the one before."""
    write_plan(folder, arms, seeds, **plan)
    for number, arm in enumerate(arms):
        for seed in seeds:
            gold = [value + number + 0.01 * seed for value in (1.0, 2.0, 3.0, 4.0)]
            write_run(folder / arm / f"seed-{seed}", arm, seed, sampled=samples(gold=gold))
    return folder

"""One iteration: curate, train, evaluate, record."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sera_core.config import LoraConfig
from sera_core.context import Context, Policy
from sera_core.curate.score import both_sides
from sera_core.curation import History, curate
from sera_core.drawing import generate
from sera_core.evaluate.intervals import correlation
from sera_core.evaluate.policy import of_ancestral, of_judge, of_pairs, of_probe, of_samples
from sera_core.models.hashes import weights_hash
from sera_core.plan import IterationPlan
from sera_core.protocols import Diagnosing, Objective, Progress, Sampling
from sera_core.records import Candidates, PairLogps, Pairs, StepRecord
from sera_core.selection import Curated
from sera_core.train.arguments import normal_training_fields
from sera_core.train.lora import LoraOptions
from sera_core.train.run import TrainRequest, train
from sera_core.train.step import Algebra
from sera_core.workspace import Stage, read_json, write_json

# Intermediate policies may be shared by several runs, so their card names none.
INTERMEDIATE_CARD = "# Intermediate policy\n\nAn iterate of a Sera run; the run's final model has the full card.\n"


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished iteration: its policy, the reference it was trained against, and its report."""

    policy: Policy
    reference: Policy
    report: Mapping[str, Any]
    steps: Path


def run_iteration(
    run: Context, step: IterationPlan, history: History, on_step: Callable[[StepRecord], None]
) -> Finished:
    """All stages of one iteration, each reused when a valid result exists."""
    curated = curate(run, step, history)
    loop = run.plan.config.loop
    start = history.newest if loop.start == "previous" else run.initial
    reference = history.newest if loop.reference == "previous" else run.initial
    trained = _train(run, step, curated, (start, reference), on_step)
    model = trained.path / "model"
    policy = Policy(step.iteration, model, run.ranks.on_main(lambda: weights_hash(model)))
    values, seconds = evaluate(run, step, policy)
    report = _report(step, curated, values, {**curated.seconds, "train": trained.seconds, **seconds})
    run.ranks.on_main(lambda: write_json(run.workspace.out / f"iter_{step.iteration}" / "report.json", report))
    return Finished(policy, reference, report, trained.path / "steps.jsonl")


def _train(
    run: Context,
    step: IterationPlan,
    curated: Curated,
    policies: tuple[Policy, Policy],
    on_step: Callable[[StepRecord], None],
) -> Stage:
    start, reference = policies
    parts, config = step.objective, step.config
    reads_reference = parts.loss.needs.reference

    def compute(folder: Path, progress: Progress) -> None:
        logps = None
        if reads_reference:
            both = run.ranks.main_first(lambda: run.logps(reference, both_sides(curated.pairs.pairs), progress))
            chosen, rejected = np.split(both.astype(np.float32), 2)
            logps = (chosen, rejected)
        request = TrainRequest(
            pairs=curated.pairs,
            reference=logps,
            algebra=Algebra(parts.loss, parts.transforms, parts.smoother, parts.reweighter),
            training=config.training,
            lora=None if config.policy.lora is None else _lora(config.policy.lora),
            seed=config.seed,
            iteration=step.iteration,
            token_budget=config.scoring.token_budget,
            workdir=folder,
            load_model=lambda: run.load(start),
            tokenizer=run.tokenizer,
            policy_is_reference=start.hash == reference.hash,
            card=INTERMEDIATE_CARD,
            progress=progress,
        )
        with warnings.catch_warnings():
            # What torch names in its place does not do the same yet, as the warning itself says.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            train(request, on_step)

    inputs = {
        "start": start.hash,
        "reference": reference.hash if reads_reference else None,
        "pairs": curated.digest,
        "objective": _objective_key(run, step),
        "training": normal_training_fields(config.training),
        "policy": config.policy.model_dump(exclude={"model", "revision"}),
        "template": run.template,
        "token_budget": config.scoring.token_budget,
        "draw": [config.seed, step.iteration],
    }
    if run.ranks.world > 1:
        # Ranks share out the effective batch, and with it the order of its sums.
        inputs["world"] = run.ranks.world
    return run.stage("train", f"iter_{step.iteration}/train", inputs, compute, resumable=True, together=True)


def _lora(config: LoraConfig) -> LoraOptions:
    modules = None if config.target_modules == "all-linear" else tuple(config.target_modules)
    return LoraOptions(config.r, float(config.alpha), config.dropout, modules)


def _objective_key(run: Context, step: IterationPlan) -> list[str]:
    names, parts = step.config.objective, step.objective
    return [
        run.component("objective", names.loss.name, parts.loss),
        *(
            run.component("transform", spec.name, part)
            for spec, part in zip(names.transforms, parts.transforms, strict=True)
        ),
        run.component("smoother", names.smoother.name, parts.smoother),
        run.component("reweighter", names.reweighter.name, parts.reweighter),
    ]


def evaluate(run: Context, step: IterationPlan, policy: Policy) -> tuple[dict[str, Any], dict[str, float]]:
    """Samples on held-out prompts against the initial policy's, rewards on held-out pairs; as the stage ``evaluate``.

    Returns the measured values and the seconds spent.
    """
    settings = run.plan.config.evaluation
    sampling = run.plan.evaluation_sampling
    baseline, baseline_stage = _samples(run, run.initial, 0, sampling)
    samples, sampled = _samples(run, policy, step.iteration, sampling)
    ancestral = Sampling(samples=1, temperature=1.0, top_p=1.0, max_new_tokens=sampling.max_new_tokens)
    whole, whole_stage = _samples(run, policy, step.iteration, ancestral, settings.kl_prompts, "ancestral")

    def compute(folder: Path, progress: Progress) -> None:
        _fill_store(run, policy, (whole, samples), progress)
        values = of_ancestral(run.log_ratios(policy, whole.flat(), progress), settings.level, whole)
        values |= of_samples(run.log_ratios(policy, samples.flat(), progress), samples)
        values |= _judge(run, policy, samples, baseline)
        values |= _held_out(run, policy, step.objective.loss)
        write_json(folder / "evaluation.json", values)

    inputs = {
        "samples": [sampled.key, baseline_stage.key, whole_stage.key],
        "data": run.data.key,
        "policies": [policy.hash, run.initial.hash],
        "judge": run.judge(),
        "level": settings.level,
        "objective": _objective_key(run, step)[0],
        "numerics": run.numerics,
    }
    stage = run.stage("evaluate", f"iter_{step.iteration}/evaluate", inputs, compute)
    values: dict[str, Any] = read_json(stage.path / "evaluation.json")
    return values, {"sample": sampled.seconds + whole_stage.seconds, "evaluate": stage.seconds}


def _fill_store(run: Context, policy: Policy, drawn: tuple[Candidates, ...], progress: Progress) -> None:
    """Score everything the evaluation reads under one model before the other is loaded."""
    responses = [response for candidates in drawn for response in candidates.flat()]
    for pairs in (run.data.validation, *run.data.probes.values()):
        responses.extend(both_sides(pairs.pairs))
    for each in (policy, run.initial):
        run.logps(each, responses, progress)


def _samples(
    run: Context,
    policy: Policy,
    iteration: int,
    sampling: Sampling,
    limit: int | None = None,
    name: str = "sample",
) -> tuple[Candidates, Stage]:
    settings = run.plan.config.evaluation
    return generate(
        run,
        policy,
        run.data.evaluation[:limit],
        (settings.generator.name, run.plan.evaluation_generator),
        sampling,
        where=f"iter_{iteration}/{name}",
        iteration=iteration,
        purpose=f"evaluate {name}",
    )


def _judge(run: Context, policy: Policy, samples: Candidates, baseline: Candidates) -> dict[str, Any]:
    level = run.plan.config.evaluation.level
    values, grades = of_judge(run.plan.judge, samples, baseline, level)
    values["reward_gold_correlation"] = None
    if grades is not None and values["gold_reward"] is not None:
        values["reward_gold_correlation"] = correlation(run.log_ratios(policy, samples.flat()), grades)
    source = run.plan.source
    values["diagnostics"] = dict(source.diagnose(samples.flat())) if isinstance(source, Diagnosing) else {}
    return values


def _held_out(run: Context, policy: Policy, objective: Objective) -> dict[str, Any]:
    """The objective's margins on held-out pairs, with the initial policy as the reference, and the probes."""
    values = of_pairs(*_margins(run, policy, objective, run.data.validation))
    values["probes"] = {
        name: of_probe(run.log_ratios(policy, both_sides(probe.pairs)), probe.pairs, run.plan.judge)
        for name, probe in run.data.probes.items()
    }
    return values


def _margins(run: Context, policy: Policy, objective: Objective, pairs: Pairs) -> tuple[Any, Any]:
    if not pairs.pairs:
        return np.zeros(0), np.zeros(0)
    responses = both_sides(pairs.pairs)
    policy_logps, initial_logps = run.logps(policy, responses), run.logps(run.initial, responses)
    lengths = torch.tensor([len(response.ids) for response in responses])
    (chosen, rejected), (first, second) = np.split(policy_logps, 2), np.split(initial_logps, 2)
    logps = PairLogps(
        chosen_policy=torch.from_numpy(chosen),
        rejected_policy=torch.from_numpy(rejected),
        chosen_length=lengths[: len(chosen)],
        rejected_length=lengths[len(chosen) :],
        chosen_reference=torch.from_numpy(first),
        rejected_reference=torch.from_numpy(second),
    )
    return objective.margins(logps).numpy(), chosen - first


def _report(
    step: IterationPlan, curated: Curated, values: Mapping[str, Any], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """The iteration's report: the fields of the run-output contract, then what only this report holds."""
    origins = [pair.source == "generated" for pair in curated.pairs.pairs]
    contract = (
        "margin_mean",
        "accuracy",
        "chosen_logp_drift",
        "kl_to_initial",
        "win_rate_vs_initial",
        "gold_reward",
        "response_length",
        "eos_rate",
        "reward_length_correlation",
        "reward_gold_correlation",
    )
    return {
        "iteration": step.iteration,
        "pairs_offline": len(origins) - sum(origins),
        "pairs_generated": sum(origins),
        "dropped": dict(curated.pairs.dropped),
        **{key: values[key] for key in contract},
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "selection": dict(curated.found),
        "kl_interval": values["kl_interval"],
        "diagnostics": values["diagnostics"],
        "probes": values["probes"],
    }

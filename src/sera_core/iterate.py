"""One iteration: curate, train, evaluate, record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sera_core.asker import JudgeModel
from sera_core.context import Context, Policy
from sera_core.curation import History, curate
from sera_core.drawing import generate
from sera_core.evaluate.intervals import correlation
from sera_core.evaluate.policy import Judged, of_ancestral, of_judge, of_samples
from sera_core.evidence import ANCESTRAL, HELD_OUT, SAMPLES, write_evidence
from sera_core.held_out import HeldOut, fill_store, of_held_out, prefixes_of
from sera_core.judging import account, bound, judge_model, model_key
from sera_core.models.hashes import weights_hash
from sera_core.plan import IterationPlan
from sera_core.protocols import Diagnosing, Progress, Sampling
from sera_core.records import Candidates, Floats, StepRecord
from sera_core.selection import Curated
from sera_core.training import objective_key, train_stage
from sera_core.workspace import Stage, read_json, write_json

# Part of the stage's key: a result without these files is none.
_EVIDENCE = ("samples.arrow", "pairs.arrow", "ancestral.arrow")


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
    trained = train_stage(run, step, curated, (start, reference), on_step)
    model = trained.path / "model"
    policy = Policy(step.iteration, model, run.ranks.on_main(lambda: weights_hash(model)))
    values, measured = evaluate(run, step, policy)
    report = _report(step, curated, values, {**curated.stages, "train": trained, **measured})
    run.ranks.on_main(lambda: write_json(run.workspace.out / f"iter_{step.iteration}" / "report.json", report))
    return Finished(policy, reference, report, trained.path / "steps.jsonl")


def evaluate(run: Context, step: IterationPlan, policy: Policy) -> tuple[dict[str, Any], dict[str, Stage]]:
    """Samples on held-out prompts against the initial policy's, rewards on held-out pairs; as the stage ``evaluate``.

    Returns the measured values and the stages by name.
    """
    settings = run.plan.config.evaluation
    sampling = run.plan.evaluation_sampling
    baseline, baseline_stage = _samples(run, run.initial, 0, sampling)
    samples, sampled = _samples(run, policy, step.iteration, sampling)
    ancestral = Sampling(samples=1, temperature=1.0, top_p=1.0, max_new_tokens=sampling.max_new_tokens)
    whole, whole_stage = _samples(run, policy, step.iteration, ancestral, settings.kl_prompts, "ancestral")
    asked = judge_model(run, run.plan.judge, policy)

    def compute(folder: Path, progress: Progress) -> None:
        held = HeldOut.of(run, step)
        fill_store(run, policy, (*whole.flat(), *samples.flat()), held, progress)
        ratios = run.log_ratios(policy, whole.flat(), progress)
        rewards = run.log_ratios(policy, samples.flat(), progress)
        judged = _judge(run, rewards, (samples, baseline), asked, progress)
        figures, rows = of_held_out(run, policy, step.objective.loss, held)
        values = {**of_ancestral(ratios, settings.level, whole), **of_samples(rewards, samples)}
        write_json(folder / "evaluation.json", {**values, **judged.values, **figures})
        write_evidence(folder / _EVIDENCE[0], SAMPLES, _sample_rows(samples, rewards, judged))
        write_evidence(folder / _EVIDENCE[1], HELD_OUT, rows)
        prompts = [response.prompt.id for response in whole.flat()]
        write_evidence(folder / _EVIDENCE[2], ANCESTRAL, {"prompt": prompts, "log_ratio": ratios})

    inputs = {
        "samples": [sampled.key, baseline_stage.key, whole_stage.key],
        "data": run.data.key,
        "policies": [policy.hash, run.initial.hash],
        "judge": [run.judge(), model_key(run, asked)],
        "level": settings.level,
        "prefixes": prefixes_of(run.plan, step),
        "tuning_pairs": settings.tuning_pairs,
        "objective": objective_key(run, step)[0],
        "numerics": run.numerics,
        "evidence": _EVIDENCE,
    }
    stage = run.stage("evaluate", f"iter_{step.iteration}/evaluate", inputs, compute)
    values: dict[str, Any] = read_json(stage.path / "evaluation.json")
    both = replace(sampled, seconds=sampled.seconds + whole_stage.seconds)
    return values, {"sample": both, "evaluate": stage}


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


def _sample_rows(samples: Candidates, rewards: Floats, judged: Judged) -> dict[str, Any]:
    """The columns of `SAMPLES`."""
    responses = samples.flat()
    return {
        "prompt": [response.prompt.id for response in responses],
        "points": judged.points,
        "gold": judged.gold,
        "reward": rewards,
        "length": [len(response.ids) for response in responses],
        "ended": [response.finish_reason == "stop" for response in responses],
    }


def _judge(
    run: Context, rewards: Floats, drawn: tuple[Candidates, Candidates], asked: JudgeModel | None, progress: Progress
) -> Judged:
    """What the judge says of the policy's samples and the baseline's; in all iterations it judges a text alike.

    `rewards` float64 [n] are the implicit rewards of the policy's samples.
    """
    level, judge, samples = run.plan.config.evaluation.level, run.plan.judge, drawn[0]
    if judge is not None:
        judge = bound(run, judge, asked, iteration=0, purpose="evaluation judge", progress=progress)
    judged = of_judge(judge, *drawn, level)
    source = run.plan.source
    more = {
        "judge": None if judge is None else account(judge) or None,
        "reward_gold_correlation": None if judged.gold is None else correlation(rewards, judged.gold),
        "diagnostics": dict(source.diagnose(samples.flat())) if isinstance(source, Diagnosing) else {},
    }
    return replace(judged, values={**judged.values, **more})


def _report(
    step: IterationPlan, curated: Curated, values: Mapping[str, Any], stages: Mapping[str, Stage]
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
        "seconds": {name: round(stage.seconds, 3) for name, stage in stages.items()},
        "work": {name: dict(stage.work) for name, stage in stages.items() if stage.work},
        "selection": dict(curated.found),
        "judge": values["judge"],
        "kl_interval": values["kl_interval"],
        "diagnostics": values["diagnostics"],
        "probes": values["probes"],
        "augmented": values["augmented"],
        "tuning": values["tuning"],
        "margin_score_correlation": values["margin_score_correlation"],
        "logp_gap_score_correlation": values["logp_gap_score_correlation"],
    }

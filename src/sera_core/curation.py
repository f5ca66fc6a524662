"""Curation of one iteration: generate, measure, score, label, select, each a stage on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from sera_core.context import Context, Policy, prompts_key, sampling_key
from sera_core.curate import diagnose
from sera_core.curate.label import label, with_targets
from sera_core.curate.measure import measure, pack, unpack
from sera_core.curate.prompts import AnyPrompt, named_prompts, offline_prompts, share_of_round
from sera_core.curate.score import both_sides, by_prompt, margins, pair_margins, score
from sera_core.curate.select import keep, mix, select
from sera_core.curate.streams import stream
from sera_core.data.tables import read_candidates, read_pairs, write_candidates, write_pairs
from sera_core.data.targets import tokenize_targets
from sera_core.data.tokens import tokenize_prompts
from sera_core.errors import DataError
from sera_core.plan import IterationPlan
from sera_core.prepare import limits_of
from sera_core.protocols import Generator, Progress, Sampling, Scorer
from sera_core.records import Candidates, Floats, Pairs, Prompt, Response
from sera_core.workspace import Stage, checksums, read_json, write_json


@dataclass(frozen=True, slots=True)
class History:
    """Policies an iteration builds on. `trained`, newest first, pairs each iterate with its training reference."""

    initial: Policy
    trained: tuple[tuple[Policy, Policy], ...] = ()

    @property
    def newest(self) -> Policy:
        """The last iterate, or the initial policy before the first."""
        return self.trained[0][0] if self.trained else self.initial


@dataclass(frozen=True, slots=True)
class Curated:
    """What an iteration trains on. `found` holds diagnostics per section, `seconds` the time of each stage."""

    pairs: Pairs
    found: Mapping[str, Any]
    digest: str
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Scored:
    """Responses of one section (offline or generated) that a scorer is to score."""

    name: str
    scorer: Scorer
    responses: tuple[Response, ...]


def curate(run: Context, step: IterationPlan, history: History) -> Curated:
    """Everything from the newest policy to this iteration's training set D_t (Source: Ko et al. 2024, Eq. 5-7)."""
    done: dict[str, Stage] = {}
    candidates, lost = _generate(run, step, history, done)
    sections = _sections(run, step, candidates)
    scores = _score(run, step, history, sections, done) if sections else {}
    labelled: tuple[Pairs, Floats] | None = None
    if candidates is not None:
        labelled = _label(run, step, candidates, scores.get("generated"), lost, done)
    return _select(run, step, scores.get("offline"), labelled, done)


def generate(
    run: Context,
    policy: Policy,
    prompts: tuple[Prompt, ...],
    generator: tuple[str, Generator],
    sampling: Sampling,
    *,
    where: str,
    iteration: int,
    purpose: str,
) -> tuple[Candidates, Stage]:
    """Samples of a policy, as a stage. Evaluation uses it too."""

    def compute(folder: Path, progress: Progress) -> None:
        context = run.generation(iteration, purpose, progress)
        write_candidates(folder / "candidates.arrow", generator[1].generate(policy.path, prompts, sampling, context))

    inputs = {
        "model": policy.hash,
        "dtype": run.plan.config.policy.dtype,
        "template": run.template,
        "generator": run.component("generator", *generator),
        "sampling": sampling_key(sampling),
        "prompts": prompts_key(prompts),
        "draw": [run.plan.config.seed, iteration, purpose],
    }
    stage = run.stage("generate", where, inputs, compute)
    return read_candidates(stage.path / "candidates.arrow"), stage


def _generate(
    run: Context, step: IterationPlan, history: History, done: dict[str, Stage]
) -> tuple[Candidates | None, Mapping[str, int]]:
    """Candidates, and how many prompts could not be used, by reason."""
    plan = step.generated
    if plan is None:
        return None, {}
    prompts, targets, lost = _prompts(run, step)
    candidates, done["generate"] = generate(
        run,
        history.newest,
        prompts,
        (plan.settings.generator.name, plan.generator),
        plan.sampling,
        where=f"iter_{step.iteration}/generate",
        iteration=step.iteration,
        purpose="curate",
    )
    return with_targets(candidates, targets) if plan.labeler.needs.targets else candidates, lost


def _prompts(run: Context, step: IterationPlan) -> tuple[tuple[Prompt, ...], Mapping[str, Response], Mapping[str, int]]:
    """The prompts of this iteration, reference answers where the labeler needs them, and unusable prompts by reason."""
    plan = step.generated
    if plan is None:
        return (), {}, {}
    settings = plan.settings
    if settings.prompts == "offline":
        return _of_iteration(run, step, offline_prompts(run.data.pairs.pairs)), {}, {}
    limits = limits_of(run.plan)
    named = _of_iteration(run, step, named_prompts(run.data.source, settings.prompts))
    prompts, lost = tokenize_prompts(run.tokenizer, named, limits)
    if not plan.labeler.needs.targets:
        return prompts, {}, lost
    targets, unusable = tokenize_targets(run.tokenizer, prompts, limits)
    lost = {reason: lost.get(reason, 0) + unusable.get(reason, 0) for reason in sorted({*lost, *unusable})}
    return tuple(prompt for prompt in prompts if prompt.id in targets), targets, lost


def _of_iteration(run: Context, step: IterationPlan, prompts: tuple[AnyPrompt, ...]) -> tuple[AnyPrompt, ...]:
    plan = step.generated
    if plan is not None and plan.settings.disjoint:
        first = plan.settings.from_iteration
        prompts = share_of_round(prompts, step.iteration - first, run.plan.config.loop.iterations - first + 1)
    return prompts if plan is None else prompts[: plan.settings.limit]


def _sections(run: Context, step: IterationPlan, candidates: Candidates | None) -> tuple[Scored, ...]:
    found: list[Scored] = []
    if step.offline is not None and step.offline.acts and step.offline.scorer is not None:
        found.append(Scored("offline", step.offline.scorer, both_sides(run.data.pairs.pairs)))
    if step.generated is not None and step.generated.scorer is not None and candidates is not None:
        found.append(Scored("generated", step.generated.scorer, candidates.flat()))
    return tuple(found)


def _scorer_keys(run: Context, step: IterationPlan, sections: tuple[Scored, ...]) -> dict[str, str]:
    config = {"offline": step.config.offline, "generated": step.config.generated}
    specs = {name: section.scorer for name, section in config.items() if section is not None}
    return {
        section.name: run.component("scorer", spec.name, section.scorer)
        for section in sections
        if (spec := specs[section.name]) is not None
    }


def _score(
    run: Context, step: IterationPlan, history: History, sections: tuple[Scored, ...], done: dict[str, Stage]
) -> dict[str, Floats]:
    policies = {p.hash: p for pair in history.trained for p in pair} | {history.initial.hash: history.initial}
    iterates = [(p.iteration, p.hash, reference.hash) for p, reference in history.trained]

    def compute_logps(folder: Path, progress: Progress) -> None:
        for section in sections:
            logps = measure(
                section.responses,
                section.scorer.needs,
                iterates,
                history.initial.hash,
                lambda model, responses: run.logps(policies[model], responses, progress),
            )
            save_file(pack(logps), folder / f"{section.name}.safetensors")

    source = done["generate"].key if "generate" in done else None
    inputs: dict[str, Any] = {"data": run.data.key, "generate": source, "iterates": iterates}
    inputs |= {"initial": history.initial.hash}
    inputs |= {"dtype": run.plan.config.policy.dtype, "template": run.template}
    inputs |= {"sections": {section.name: repr(section.scorer.needs) for section in sections}}
    done["measure"] = run.stage("measure", f"iter_{step.iteration}/measure", inputs, compute_logps)
    measured = done["measure"].path

    def compute_scores(folder: Path, _progress: Progress) -> None:
        for section in sections:
            logps = unpack(load_file(measured / f"{section.name}.safetensors"))
            scores = score(section.scorer, section.responses, logps)
            save_file({"scores": scores}, folder / f"{section.name}.safetensors")

    inputs = {"measure": done["measure"].key, "scorers": _scorer_keys(run, step, sections)}
    done["score"] = run.stage("score", f"iter_{step.iteration}/score", inputs, compute_scores)
    return {
        section.name: load_file(done["score"].path / f"{section.name}.safetensors")["scores"] for section in sections
    }


def _label(
    run: Context,
    step: IterationPlan,
    candidates: Candidates,
    scores: Floats | None,
    lost: Mapping[str, int],
    done: dict[str, Stage],
) -> tuple[Pairs, Floats]:
    plan = step.generated
    if plan is None:
        raise DataError("Candidates without a generated section; this is a bug in the plan.")
    flat = np.zeros(len(candidates.flat())) if scores is None else scores

    def compute(folder: Path, _progress: Progress) -> None:
        rng = stream(run.plan.config.seed, step.iteration, "label")
        pairs = label(
            plan.labeler,
            candidates,
            by_prompt(candidates, flat),
            rng,
            iteration=step.iteration,
            template=run.template,
            lost=lost,
        )
        write_pairs(folder / "pairs.arrow", pairs)
        save_file({"margins": pair_margins(pairs.pairs, candidates, flat)}, folder / "margins.safetensors")

    inputs = {
        "generate": done["generate"].key,
        "score": done["score"].key if scores is not None else None,
        "labeler": run.component("labeler", plan.settings.labeler.name, plan.labeler),
        "seed": [run.plan.config.seed, step.iteration],
        "data": run.data.key,
    }
    done["label"] = run.stage("label", f"iter_{step.iteration}/label", inputs, compute)
    folder = done["label"].path
    return read_pairs(folder / "pairs.arrow"), load_file(folder / "margins.safetensors")["margins"]


def _select(
    run: Context,
    step: IterationPlan,
    offline_scores: Floats | None,
    labelled: tuple[Pairs, Floats] | None,
    done: dict[str, Stage],
) -> Curated:
    def compute(folder: Path, _progress: Progress) -> None:
        parts: dict[str, Pairs] = {}
        found: dict[str, Any] = {}
        if step.offline is not None:
            parts["offline"], found["offline"] = _select_offline(run, step, offline_scores)
        if labelled is not None:
            parts["generated"], found["generated"] = _select_generated(run, step, *labelled)
        write_pairs(folder / "pairs.arrow", mix(parts))
        write_json(folder / "selection.json", found)

    inputs: dict[str, Any] = {"data": run.data.key, "seed": [run.plan.config.seed, step.iteration]}
    inputs["score"] = done["score"].key if "score" in done else None
    inputs["label"] = done["label"].key if "label" in done else None
    inputs["judge"] = run.judge()
    offline, generated = step.config.offline, step.config.generated
    if step.offline is not None and offline is not None:
        acts = step.offline.acts
        inputs["offline"] = run.component("selector", offline.selector.name, step.offline.selector) if acts else "all"
    if step.generated is not None and generated is not None:
        inputs["generated"] = run.component("selector", generated.selector.name, step.generated.selector)
    stage = done["select"] = run.stage("select", f"iter_{step.iteration}/select", inputs, compute)
    return Curated(
        pairs=read_pairs(stage.path / "pairs.arrow"),
        found=read_json(stage.path / "selection.json"),
        digest=checksums(stage.path)["pairs.arrow"],
        seconds={name: each.seconds for name, each in done.items()},
    )


def _select_offline(run: Context, step: IterationPlan, scores: Floats | None) -> tuple[Pairs, dict[str, Any]]:
    pairs, plan = run.data.pairs, step.offline
    found: dict[str, Any] = {
        "pairs": len(pairs.pairs),
        "flipped_share": diagnose.flipped_share(pairs.pairs),
        "length_advantage": diagnose.length_advantage(pairs.pairs),
    }
    if plan is None or not plan.acts:
        return pairs, found
    values = np.zeros(len(pairs.pairs)) if scores is None else margins(scores)
    rng = stream(run.plan.config.seed, step.iteration, "select offline")
    kept = keep(pairs, select(plan.selector, values, pairs.pool, rng))
    found |= {
        "flip_auc": diagnose.flip_auc(values, pairs.pairs) if scores is not None else None,
        "kept": len(kept.pairs),
        "kept_flipped_share": diagnose.flipped_share(kept.pairs),
        "kept_length_advantage": diagnose.length_advantage(kept.pairs),
    }
    return kept, found


def _select_generated(run: Context, step: IterationPlan, pairs: Pairs, values: Floats) -> tuple[Pairs, dict[str, Any]]:
    plan, judge = step.generated, run.plan.judge
    if plan is None:
        return pairs, {}
    rng = stream(run.plan.config.seed, step.iteration, "select generated")
    kept = keep(pairs, select(plan.selector, values, pairs.pool, rng))
    found: dict[str, Any] = {"pairs": len(pairs.pairs), "kept": len(kept.pairs)}
    found["kept_length_advantage"] = diagnose.length_advantage(kept.pairs)
    if judge is not None and kept.pairs:
        grades = np.asarray(judge.grade(both_sides(kept.pairs)), dtype=np.float64)
        found["accuracy"] = diagnose.agreement(grades, len(kept.pairs))
    return kept, found

"""Curation of one iteration: generate, measure, score or judge, label, select, each a stage on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from sera_core.context import Context, Policy, responses_key
from sera_core.curate.judge import Judged, judge_scores, leave_out
from sera_core.curate.label import label
from sera_core.curate.measure import measure, pack, unpack
from sera_core.curate.score import both_sides, by_prompt, pair_margins, score
from sera_core.curate.streams import stream
from sera_core.data.tables import read_pairs, write_pairs
from sera_core.drawing import draw_candidates
from sera_core.errors import DataError
from sera_core.judging import account, bound, judge_model, model_key
from sera_core.plan import IterationPlan
from sera_core.protocols import AsksModel, Progress, Scorer
from sera_core.records import Candidates, Floats, Pairs, Response
from sera_core.selection import Curated, select_pairs
from sera_core.workspace import Stage, read_json, write_json

# Why a prompt is dropped whose samples the judge gave too few grades.
ABSTAINED = "judge_abstained"


@dataclass(frozen=True, slots=True)
class History:
    """Policies an iteration builds on.

    `initial` is what scorers know as the initial policy: the run's, or what that was tuned from (`policy.base`).
    `trained`, newest first, pairs each iterate with its training reference.
    """

    initial: Policy
    trained: tuple[tuple[Policy, Policy], ...] = ()

    @property
    def newest(self) -> Policy:
        """The last iterate, or the initial policy before the first."""
        return self.trained[0][0] if self.trained else self.initial


@dataclass(frozen=True, slots=True)
class Scored:
    """Responses of one section (offline or generated) that a scorer is to score."""

    name: str
    scorer: Scorer
    responses: tuple[Response, ...]


def curate(run: Context, step: IterationPlan, history: History) -> Curated:
    """Everything from the newest policy to this iteration's training set D_t (Source: Ko et al. 2024, Eq. 5-7)."""
    done: dict[str, Stage] = {}
    candidates, lost = draw_candidates(run, step, history.newest, done)
    sections = _sections(run, step, candidates)
    scores = _score(run, step, history, sections, done) if sections else {}
    labelled: tuple[Pairs, Floats] | None = None
    figures: Mapping[str, float] | None = None
    if candidates is not None:
        own = scores.get("generated")
        if step.generated is not None and step.generated.judge is not None:
            judged, figures = _judge(run, step, history.newest, candidates, done)
            candidates, own = judged.candidates, judged.scores
            if judged.prompts_left_out:
                lost = {**lost, ABSTAINED: judged.prompts_left_out}
        labelled = _label(run, step, candidates, own, lost, done)
    return select_pairs(run, step, scores.get("offline"), labelled, done, figures)


def _judge(
    run: Context, step: IterationPlan, newest: Policy, candidates: Candidates, done: dict[str, Stage]
) -> tuple[Judged, Mapping[str, float]]:
    """The judge's scores of the samples, as the stage ``judge``, and the figures it keeps."""
    plan = step.generated
    if plan is None or plan.judge is None or plan.judge_name is None:
        raise DataError("Judging without a judge; this is a bug in the plan.")
    judge = plan.judge
    model = judge_model(run, judge, newest)

    def compute(folder: Path, progress: Progress) -> None:
        asked = bound(run, judge, model, iteration=step.iteration, purpose="judge", progress=progress)
        scores = judge_scores(asked, candidates, may_abstain=isinstance(judge, AsksModel))
        save_file({"scores": scores}, folder / "scores.safetensors")
        left_out = {"samples_left_out": float(np.isnan(scores).sum())}
        write_json(folder / "account.json", account(asked) | left_out)

    inputs = {
        "generate": done["generate"].key,
        "judge": run.component("judge", plan.judge_name, judge),
        "model": model_key(run, model),
        "draw": [run.plan.config.seed, step.iteration],
        "data": run.data.key,
    }
    done["judge"] = run.stage("judge", f"iter_{step.iteration}/judge", inputs, compute)
    folder = done["judge"].path
    return leave_out(candidates, load_file(folder / "scores.safetensors")["scores"]), read_json(folder / "account.json")


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
    depth = max(section.scorer.needs.history for section in sections)
    iterates = [(p.iteration, p.hash, reference.hash) for p, reference in history.trained[:depth]]

    def compute_logps(folder: Path, progress: Progress) -> None:
        _fill_store(run, history, sections, progress)
        for section in sections:
            logps = measure(
                section.responses,
                section.scorer.needs,
                iterates,
                history.initial.hash,
                lambda model, responses: run.logps(policies[model], responses, progress),
            )
            save_file(pack(logps), folder / f"{section.name}.safetensors")

    inputs: dict[str, Any] = {"iterates": iterates, "initial": history.initial.hash}
    inputs |= {"numerics": run.numerics, "template": run.template}
    inputs |= {"sections": {each.name: [repr(each.scorer.needs), responses_key(each.responses)] for each in sections}}
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


def _fill_store(run: Context, history: History, sections: tuple[Scored, ...], progress: Progress) -> None:
    """Score all sections' responses under one model before the next is loaded; `measure` then finds them stored."""
    wanted: dict[str, tuple[Policy, list[Response]]] = {}
    for section in sections:
        needs = section.scorer.needs
        policies = [p for pair in history.trained[: needs.history] for p in (pair if needs.reference else pair[:1])]
        for policy in {p.hash: p for p in [*policies, *([history.initial] if needs.initial else [])]}.values():
            wanted.setdefault(policy.hash, (policy, []))[1].extend(section.responses)
    for policy, responses in wanted.values():
        run.logps(policy, responses, progress)


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
        "score": next((done[name].key for name in ("judge", "score") if name in done and scores is not None), None),
        "labeler": run.component("labeler", plan.settings.labeler.name, plan.labeler),
        "seed": [run.plan.config.seed, step.iteration],
        "data": run.data.key,
    }
    done["label"] = run.stage("label", f"iter_{step.iteration}/label", inputs, compute)
    folder = done["label"].path
    return read_pairs(folder / "pairs.arrow"), load_file(folder / "margins.safetensors")["margins"]

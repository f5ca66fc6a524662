"""The selection stage: which pairs an iteration trains on, and what they look like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sera_core.context import Context, pairs_key
from sera_core.curate import diagnose
from sera_core.curate.score import both_sides, margins
from sera_core.curate.select import keep, mix, prompt_numbers, select
from sera_core.curate.streams import stream
from sera_core.data.tables import read_pairs, write_pairs
from sera_core.plan import IterationPlan
from sera_core.protocols import Progress
from sera_core.records import Floats, Pairs
from sera_core.workspace import Stage, read_json, write_json


@dataclass(frozen=True, slots=True)
class Curated:
    """What an iteration trains on. `found` holds diagnostics per section; `stages` are those that led here, by name."""

    pairs: Pairs
    found: Mapping[str, Any]
    digest: str
    stages: Mapping[str, Stage]


def select_pairs(
    run: Context,
    step: IterationPlan,
    offline_scores: Floats | None,
    labelled: tuple[Pairs, Floats] | None,
    done: dict[str, Stage],
    judge: Mapping[str, float] | None = None,
) -> Curated:
    """Both sections' kept pairs, mixed, as the stage ``select``.

    Args:
        run: the run.
        step: the iteration.
        offline_scores: float64 [2n] of the offline pairs' both sides; None where nothing scores them.
        labelled: generated pairs and their margins float64 [m]; None where nothing is generated.
        done: the iteration's stages so far; this one is added.
        judge: the figures of the judge that scored the generated samples; None without one.
    """

    def compute(folder: Path, _progress: Progress) -> None:
        parts: dict[str, Pairs] = {}
        found: dict[str, Any] = {}
        if step.offline is not None:
            parts["offline"], found["offline"] = _select_offline(run, step, offline_scores)
        if labelled is not None:
            parts["generated"], found["generated"] = _select_generated(run, step, *labelled, judge)
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
    pairs = read_pairs(stage.path / "pairs.arrow")
    return Curated(
        pairs=pairs,
        found=read_json(stage.path / "selection.json"),
        digest=pairs_key(pairs.pairs),
        stages=done,
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
    # The pool is the usable pairs: k = fraction N (Source: Ko et al. 2024, Eq. 6); rows refused earlier never counted.
    kept = keep(pairs, select(plan.selector, values, len(pairs.pairs), rng, prompt_numbers(pairs.pairs)))
    found |= {
        "flip_auc": diagnose.flip_auc(values, pairs.pairs) if scores is not None else None,
        "kept": len(kept.pairs),
        "kept_flipped_share": diagnose.flipped_share(kept.pairs),
        "kept_length_advantage": diagnose.length_advantage(kept.pairs),
    }
    return kept, found


def _select_generated(
    run: Context, step: IterationPlan, pairs: Pairs, values: Floats, figures: Mapping[str, float] | None
) -> tuple[Pairs, dict[str, Any]]:
    plan, judge = step.generated, run.plan.judge
    if plan is None:
        return pairs, {}
    rng = stream(run.plan.config.seed, step.iteration, "select generated")
    kept = keep(pairs, select(plan.selector, values, pairs.pool, rng, prompt_numbers(pairs.pairs)))
    found: dict[str, Any] = {"pairs": len(pairs.pairs), "kept": len(kept.pairs)}
    found["kept_length_advantage"] = diagnose.length_advantage(kept.pairs)
    if figures is not None:
        found["judge"] = dict(figures)
    # Only gold answers are free; an LLM judge is for evaluation.
    if judge is not None and judge.needs.gold and kept.pairs:
        grades = np.asarray(judge.grade(both_sides(kept.pairs)), dtype=np.float64)
        found["accuracy"] = diagnose.agreement(grades, len(kept.pairs))
    return kept, found

"""Refusals once the data are read and before anything is generated or trained: what only the data can tell."""

from __future__ import annotations

from sera_core.context import Prepared
from sera_core.curate.prompts import named_prompts, offline_prompts, share_of_round
from sera_core.errors import ConfigError
from sera_core.plan import IterationPlan, Plan


def check_data(plan: Plan, data: Prepared) -> None:
    """Raise ConfigError when the data lack what the plan asks of them: held-out pairs, scores, prompts."""
    stop = plan.config.loop.stop
    if stop is not None and stop.metric == "accuracy" and not data.validation.pairs:
        raise ConfigError(
            "loop.stop.metric = accuracy needs held-out pairs, and the source leaves none. Raise source.validation, or "
            "choose another metric."
        )
    for step in plan.iterations:
        _check_scores(step, data)
        _check_prompts(plan, step, data)


def _check_scores(step: IterationPlan, data: Prepared) -> None:
    plan = step.offline
    if plan is None or not plan.acts or plan.scorer is None or not plan.scorer.needs.annotations:
        return
    missing = [pair.id for pair in data.pairs.pairs if pair.chosen.score is None or pair.rejected.score is None]
    if missing:
        raise ConfigError(
            f"offline.scorer reads annotated scores, which {len(missing)} of {len(data.pairs.pairs)} pairs lack, "
            f"first '{missing[0]}'. Use data with scores, or another scorer."
        )


def _check_prompts(plan: Plan, step: IterationPlan, data: Prepared) -> None:
    if step.generated is None:
        return
    settings = step.generated.settings
    if settings.prompts == "offline":
        count = len(offline_prompts(data.pairs.pairs))
    else:
        count = len(named_prompts(data.source, settings.prompts))
    if settings.disjoint:
        share_of_round(range(count), 0, plan.config.loop.iterations - settings.from_iteration + 1)

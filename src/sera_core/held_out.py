"""What the evaluation says of held-out pairs: margins as they are, under prompt prefixes, and beside scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sera_core.context import Context, Policy
from sera_core.curate.score import both_sides, margins
from sera_core.data.prefixes import prefixed_prompts
from sera_core.evaluate.policy import of_margins, of_pairs, of_probe
from sera_core.evaluate.scores import score_correlation, score_gaps
from sera_core.plan import IterationPlan, Plan
from sera_core.prepare import limits_of
from sera_core.protocols import Objective, Progress
from sera_core.records import Floats, Pair, PairLogps, Response


def prefixes_of(plan: Plan, step: IterationPlan) -> tuple[str, ...]:
    """The prompt prefixes under which an iteration is evaluated: those asked for, then those of its transforms."""
    wanted = [*plan.config.evaluation.prefixes]
    wanted += [prefix for transform in step.objective.transforms for prefix in transform.needs.prefixes]
    return tuple(dict.fromkeys(wanted))


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out pairs as an iteration is evaluated on them.

    `tuning` are set aside to choose options by; `rest` are all others, and `prefixed` the same under each prefix.
    """

    tuning: tuple[Pair, ...]
    rest: tuple[Pair, ...]
    prefixed: dict[str, tuple[Pair, ...]]

    @classmethod
    def of(cls, run: Context, step: IterationPlan) -> HeldOut:
        """The held-out pairs of an iteration."""
        pairs, count = run.data.validation.pairs, run.plan.config.evaluation.tuning_pairs
        rest = pairs[count:]
        found = {prefix: _under(run, prefix, rest) for prefix in prefixes_of(run.plan, step)}
        return cls(pairs[:count], rest, found)

    def responses(self) -> tuple[Response, ...]:
        """Every response the figures read."""
        sets = (self.tuning, self.rest, *self.prefixed.values())
        return tuple(response for pairs in sets for response in both_sides(pairs))


def fill_store(run: Context, policy: Policy, more: Sequence[Response], held: HeldOut, progress: Progress) -> None:
    """Score `more`, the held-out pairs and the probes under one model before the other is loaded."""
    responses = [*more, *held.responses()]
    for pairs in run.data.probes.values():
        responses.extend(both_sides(pairs.pairs))
    for each in (policy, run.initial):
        run.logps(each, responses, progress)


def of_held_out(
    run: Context, policy: Policy, objective: Objective, held: HeldOut
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The objective's margins on held-out pairs, with the initial policy as the reference, and the probes.

    The first result holds figures by name; the second the columns of `HELD_OUT`, a row per pair of `held.rest`.
    """
    values, drift = _margins(run, policy, objective, held.rest)
    found = of_pairs(values, drift)
    found["augmented"] = {
        prefix: of_margins(_margins(run, policy, objective, pairs)[0]) for prefix, pairs in held.prefixed.items()
    }
    tuning, _ = _margins(run, policy, objective, held.tuning)
    found["tuning"] = {**of_margins(tuning), "n": len(tuning)} if held.tuning else None
    gaps = score_gaps(held.rest)
    found["margin_score_correlation"] = score_correlation(values, gaps)
    sides = both_sides(held.rest)
    plain = {"initial": run.initial, "policy": policy}
    found["logp_gap_score_correlation"] = (
        {name: score_correlation(margins(run.logps(each, sides)), gaps) for name, each in plain.items()}
        if np.isfinite(gaps).any()
        else None
    )
    found["probes"] = {
        name: of_probe(run.log_ratios(policy, both_sides(probe.pairs)), probe.pairs, run.plan.judge)
        for name, probe in run.data.probes.items()
    }
    rows = {
        "prompt": [pair.prompt.id for pair in held.rest],
        "margin": values,
        "chosen_length": [len(pair.chosen.ids) for pair in held.rest],
        "rejected_length": [len(pair.rejected.ids) for pair in held.rest],
    }
    return found, rows


def _under(run: Context, prefix: str, pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
    """The same pairs with their prompts under a prefix."""
    prompts = prefixed_prompts(run.tokenizer, [pair.prompt for pair in pairs], prefix, limits_of(run.plan))
    return tuple(
        replace(pair, chosen=replace(pair.chosen, prompt=prompt), rejected=replace(pair.rejected, prompt=prompt))
        for pair, prompt in zip(pairs, prompts, strict=True)
    )


def _margins(run: Context, policy: Policy, objective: Objective, pairs: Sequence[Pair]) -> tuple[Floats, Floats]:
    """Margins and the chosen responses' log-ratios to the initial policy, float64 [n] each."""
    if not pairs:
        return np.zeros(0), np.zeros(0)
    responses = both_sides(pairs)
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

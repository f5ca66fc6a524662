"""What a policy's own samples and its rewards on held-out pairs say about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sera_core.errors import ConfigError, DataError
from sera_core.evaluate.intervals import correlation, mean_interval
from sera_core.evaluate.winrate import points_of, win_rate
from sera_core.protocols import Judge, Verdict
from sera_core.records import Candidates, Floats, Pair, Response


def of_ancestral(log_ratios: Floats, level: float, samples: Candidates | None = None) -> dict[str, Any]:
    """KL(policy || initial) in nats per response, from ancestral samples (temperature 1, no truncation).

    `log_ratios` float64 [n]: log pi(y|x) - log pi_initial(y|x) of each sample; their mean is an unbiased estimate,
    which samples drawn at another temperature would not give. `samples` says which of them answer one prompt, for an
    interval over prompts; None means that each answers its own.
    """
    found = mean_interval(log_ratios, level, None if samples is None else _prompt_numbers(samples))
    return {"kl_to_initial": found["mean"], "kl_interval": found}


def of_samples(log_ratios: Floats, samples: Candidates) -> dict[str, Any]:
    """Figures of the policy's own samples.

    Args:
        log_ratios: float64 [n], log pi(y|x) - log pi_initial(y|x) of each sample.
        samples: the n samples.

    Returns:
        `response_length` in tokens, end-of-turn included; `eos_rate`; `reward_length_correlation`.
    """
    responses = samples.flat()
    lengths = np.array([len(response.ids) for response in responses], dtype=np.float64)
    return {
        "response_length": float(np.mean(lengths)),
        "eos_rate": float(np.mean([response.finish_reason == "stop" for response in responses])),
        "reward_length_correlation": correlation(log_ratios, lengths),
    }


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What a judge says of n samples: `values` as means with intervals, and what it said of each.

    `points` float64 [n]: 1 for a win against the baseline's answer, 0.5 for a tie, 0 for a loss, nan for an abstention.
    `gold` float64 [n]: gold grades. Each is None where there is none.
    """

    values: Mapping[str, Any]
    points: Floats | None = None
    gold: Floats | None = None


def of_judge(judge: Judge | None, samples: Candidates, baseline: Candidates, level: float) -> Judged:
    """Win rate against the baseline's samples on the same prompts, and gold reward, with intervals over prompts.

    A judge that only grades decides comparisons by its grades: the higher wins, equal ones tie, nan abstains.
    Samples are not graded when nothing reads the grades: when the judge compares, and they are not gold.

    Returns:
        `win_rate_vs_initial` and `gold_reward`, which is None unless the judge knows gold answers, and each sample's.

    Raises:
        DataError: the two sets answer different prompts, or differ in samples per prompt.
        ConfigError: the judge neither grades nor compares.
    """
    if judge is None:
        return Judged({"win_rate_vs_initial": None, "gold_reward": None})
    if [prompt.id for prompt in samples.prompts] != [prompt.id for prompt in baseline.prompts]:
        raise DataError("The policy and the baseline answered different prompts; evaluate both on one set.")
    groups = _prompt_numbers(samples)
    if groups != _prompt_numbers(baseline):
        raise DataError("The policy and the baseline gave different numbers of samples to a prompt; sample both alike.")
    own, other = samples.flat(), baseline.flat()
    verdicts = _compare(judge, own, other)
    grades = _grade(judge, own) if verdicts is None or judge.needs.gold else None
    if verdicts is None:
        verdicts = _by_grades(judge, grades, _grade(judge, other))
    gold = grades if judge.needs.gold else None
    values = {
        "win_rate_vs_initial": win_rate(verdicts, level, groups),
        "gold_reward": None if gold is None else mean_interval(gold, level, groups),
    }
    return Judged(values, points_of(verdicts), gold)


def _prompt_numbers(samples: Candidates) -> list[int]:
    """The number of the prompt that each of the samples answers, in the order of `Candidates.flat`."""
    return [number for number, group in enumerate(samples.responses) for _ in group]


def _compare(judge: Judge, first: Sequence[Response], second: Sequence[Response]) -> tuple[Verdict, ...] | None:
    """Verdicts, or None from a judge that only grades."""
    try:
        return judge.compare(first, second)
    except NotImplementedError:
        return None


def _grade(judge: Judge, responses: Sequence[Response]) -> Floats | None:
    """Grades float64 [n], or None from a judge that only compares."""
    try:
        return np.asarray(judge.grade(responses), dtype=np.float64)
    except NotImplementedError:
        return None


def _by_grades(judge: Judge, first: Floats | None, second: Floats | None) -> tuple[Verdict, ...]:
    if first is None or second is None:
        raise ConfigError(f"The judge {judge!r} neither grades nor compares; it must do one. Choose another judge.")
    return tuple(_verdict(*grades) for grades in zip(first.tolist(), second.tolist(), strict=True))


def _verdict(own: float, other: float) -> Verdict:
    if math.isnan(own) or math.isnan(other):
        return "abstain"
    return "win" if own > other else "loss" if own < other else "tie"


def of_pairs(margins: Floats, chosen_log_ratios: Floats) -> dict[str, Any]:
    """Held-out pairs: the figures of `of_margins`, and the drift of the chosen response's log-prob."""
    drift = float(np.mean(chosen_log_ratios)) if len(margins) else None
    return {**of_margins(margins), "chosen_logp_drift": drift}


def of_margins(margins: Floats) -> dict[str, float | None]:
    """Mean margin and accuracy (margin > 0, zero one half) of n pairs; None without pairs."""
    if not len(margins):
        return {"margin_mean": None, "accuracy": None}
    accuracy = float(np.mean((margins > 0) + 0.5 * (margins == 0)))
    return {"margin_mean": float(np.mean(margins)), "accuracy": accuracy}


def of_probe(log_ratios: Floats, pairs: Sequence[Pair], judge: Judge | None) -> Mapping[str, float | None]:
    """How the implicit reward ranks a probe's pairs, and whether it follows length or gold.

    `log_ratios` float64 [2n]: of the chosen responses, then of the rejected ones. Only a judge with gold answers is
    asked: any other may charge for each of a probe's many responses.
    """
    chosen, rejected = np.split(log_ratios, 2)
    reward = chosen - rejected
    length = np.array([len(pair.chosen.ids) - len(pair.rejected.ids) for pair in pairs], dtype=np.float64)
    both: tuple[Response, ...] = (*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs))
    grades = _grade(judge, both) if judge is not None and judge.needs.gold else None
    gold = None if grades is None else np.subtract(*np.split(grades, 2))
    return {
        "accuracy": float(np.mean((reward > 0) + 0.5 * (reward == 0))),
        "length_correlation": correlation(reward, length),
        "gold_correlation": None if gold is None else correlation(reward, gold),
    }

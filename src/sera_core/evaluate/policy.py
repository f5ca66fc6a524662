"""What a policy's own samples and its rewards on held-out pairs say about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sera_core.errors import DataError
from sera_core.evaluate.intervals import correlation, mean_interval
from sera_core.evaluate.winrate import win_rate
from sera_core.protocols import Judge
from sera_core.records import Candidates, Floats, Pair, Response


def of_ancestral(log_ratios: Floats, level: float) -> dict[str, Any]:
    """KL(policy || initial) in nats per response, from ancestral samples (temperature 1, no truncation).

    `log_ratios` float64 [n]: log pi(y|x) - log pi_initial(y|x) of each sample; their mean is an unbiased estimate,
    which samples drawn at another temperature would not give.
    """
    return {"kl_to_initial": float(np.mean(log_ratios)), "kl_interval": mean_interval(log_ratios, level)}


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


def of_judge(
    judge: Judge | None, samples: Candidates, baseline: Candidates, level: float
) -> tuple[dict[str, Any], Floats | None]:
    """Win rate against the baseline's samples on the same prompts, and graded reward; grades float64 [n] or None.

    Raises:
        DataError: the two sets answer different prompts.
    """
    if judge is None:
        return {"win_rate_vs_initial": None, "gold_reward": None}, None
    if [prompt.id for prompt in samples.prompts] != [prompt.id for prompt in baseline.prompts]:
        raise DataError("The policy and the baseline answered different prompts; evaluate both on one set.")
    verdicts = judge.compare(samples.flat(), baseline.flat())
    grades = np.asarray(judge.grade(samples.flat()), dtype=np.float64)
    gold = mean_interval(grades, level) if judge.needs.gold else None
    return {"win_rate_vs_initial": win_rate(verdicts, level), "gold_reward": gold}, grades


def of_pairs(margins: Floats, chosen_log_ratios: Floats) -> dict[str, Any]:
    """Held-out pairs: mean margin, accuracy (margin > 0, zero one half), drift of the chosen response's log-prob."""
    if not len(margins):
        return {"margin_mean": None, "accuracy": None, "chosen_logp_drift": None}
    return {
        "margin_mean": float(np.mean(margins)),
        "accuracy": float(np.mean((margins > 0) + 0.5 * (margins == 0))),
        "chosen_logp_drift": float(np.mean(chosen_log_ratios)),
    }


def of_probe(log_ratios: Floats, pairs: Sequence[Pair], judge: Judge | None) -> Mapping[str, float | None]:
    """How the implicit reward ranks a probe's pairs, and whether it follows length or gold.

    `log_ratios` float64 [2n]: of the chosen responses, then of the rejected ones.
    """
    chosen, rejected = np.split(log_ratios, 2)
    reward = chosen - rejected
    length = np.array([len(pair.chosen.ids) - len(pair.rejected.ids) for pair in pairs], dtype=np.float64)
    both: tuple[Response, ...] = (*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs))
    gold = None if judge is None else np.subtract(*np.split(np.asarray(judge.grade(both), dtype=np.float64), 2))
    return {
        "accuracy": float(np.mean((reward > 0) + 0.5 * (reward == 0))),
        "length_correlation": correlation(reward, length),
        "gold_correlation": None if gold is None else correlation(reward, gold),
    }

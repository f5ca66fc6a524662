"""From a judge to scores: its grades, or the points a sample wins against the other samples of its prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sera_core.errors import ModelError
from sera_core.protocols import Judge, Verdict
from sera_core.records import Candidates, Floats, Response

_POINTS: Mapping[Verdict, float] = {"win": 1.0, "tie": 0.5, "abstain": 0.5, "loss": 0.0}


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Candidates that have a score, and their scores float64 [n] in the order of `Candidates.flat`.

    `samples_left_out` counts samples without a score; `prompts_left_out` those that lost all but one sample by it.
    """

    candidates: Candidates
    scores: Floats
    samples_left_out: int
    prompts_left_out: int


def judge_scores(judge: Judge, candidates: Candidates, *, may_abstain: bool) -> Floats:
    """float64 [n] in the order of `Candidates.flat`: grades, or `points` from a judge that only compares.

    nan where the judge abstains, which is an error unless it `may_abstain`.

    Raises:
        ModelError: another shape, an infinite grade, or one that must not be nan.
    """
    flat = candidates.flat()
    try:
        scores = np.asarray(judge.grade(flat), dtype=np.float64)
    except NotImplementedError:
        return points(judge, candidates)
    bad = np.isinf(scores) if may_abstain else ~np.isfinite(scores)
    if scores.shape != (len(flat),) or bad.any():
        raise ModelError(
            f"Judge {type(judge).__name__} must return {len(flat)} finite grades, got shape {scores.shape} with "
            f"{int(bad.sum())} that are not finite."
        )
    return scores


def points(judge: Judge, candidates: Candidates) -> Floats:
    """Mean points of each sample against every other distinct sample of its prompt, float64 [n] in [0, 1].

    A win counts 1, a tie or an abstention one half. Samples of equal words share their points; one without words, or
    without anything to compare with, takes no part and has one half.

    Raises:
        ModelError: the judge returned another number of verdicts.
    """
    players = [_distinct(group) for group in candidates.responses]
    games = [
        (number, a, b)
        for number, names in enumerate(players)
        for i, a in enumerate(names)
        for b in list(names)[i + 1 :]
    ]
    first = [players[number][a] for number, a, _ in games]
    second = [players[number][b] for number, _, b in games]
    verdicts = judge.compare(first, second) if games else ()
    if len(verdicts) != len(games):
        raise ModelError(f"Judge {type(judge).__name__} gave {len(verdicts)} verdicts for {len(games)} comparisons.")
    total = [dict.fromkeys(names, 0.0) for names in players]
    for (number, a, b), verdict in zip(games, verdicts, strict=True):
        total[number][a] += _POINTS[verdict]
        total[number][b] += 1 - _POINTS[verdict]
    scores = [
        total[number][text] / (len(players[number]) - 1) if text and len(players[number]) > 1 else 0.5
        for number, group in enumerate(candidates.responses)
        for text in (response.text.strip() for response in group)
    ]
    return np.array(scores, dtype=np.float64)


def leave_out(candidates: Candidates, scores: Floats) -> Judged:
    """Candidates without the samples whose score is nan, and without the prompts that lost all but one by it."""
    ends = np.cumsum([len(group) for group in candidates.responses])
    prompts, groups, kept = [], [], []
    lost = 0
    by_prompt = np.split(scores, ends[:-1]) if len(ends) else []
    for prompt, group, own in zip(candidates.prompts, candidates.responses, by_prompt, strict=True):
        there = np.isfinite(own)
        if not there.all() and there.sum() < 2:
            lost += 1
            continue
        prompts.append(prompt)
        groups.append(tuple(response for response, known in zip(group, there, strict=True) if known))
        kept.append(own[there])
    flat = np.concatenate(kept) if kept else np.zeros(0)
    return Judged(Candidates(tuple(prompts), tuple(groups)), flat, int(np.isnan(scores).sum()), lost)


def _distinct(group: tuple[Response, ...]) -> dict[str, Response]:
    """The first sample of each wording that has any words."""
    found: dict[str, Response] = {}
    for response in group:
        if text := response.text.strip():
            found.setdefault(text, response)
    return found

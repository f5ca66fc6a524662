"""Arm against arm: how often one answers a prompt better than the other, by gold."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TypeAlias

import numpy as np

from sera_core.report.blocks import Block, Section, Table, Text, number
from sera_core.report.study import Study
from sera_core.statistics.intervals import SHARE, WHOLE, Outcomes, mean_interval
from sera_core.statistics.metrics import GOLD
from sera_core.statistics.outcomes import read_outcomes

Share: TypeAlias = tuple[float | None, bool]
"""How often one arm beats another, and whether the interval leaves out 0.5."""
_NOTHING: Share = (None, False)


def head_to_head(study: Study) -> Section:
    """A matrix per group of arms, or the reason why there is none."""
    gold = gold_of(study)
    blocks: list[Block] = []
    for label, arms in study.groups.items():
        graded = [arm for arm in arms if gold.get(arm)]
        if len(graded) > 1:
            blocks.append(matrix({study.short(arm): gold[arm] for arm in graded}, label))
    if blocks:
        text = (
            "Share of evaluation prompts on which the row's answers have more gold reward than the column's, ties one "
            "half; several answers to a prompt are averaged first. Arms are paired by seed and prompt. * marks shares "
            "whose 95 % interval over seeds and prompts leaves out 0.5."
        )
    elif len(study.arms) == 1:
        text = "There is one arm: nothing to set against it."
    else:
        text = (
            "Left out: it needs gold grades of the answers of at least two arms, and the evaluation's judge gave none. "
            "Win rates against the initial policy are in the results."
        )
    return Section("matrix", "Arm against arm", (Text(text), *blocks))


def gold_of(study: Study) -> dict[str, Outcomes]:
    """Mean gold of each prompt by arm and seed; runs without gold, or without evidence by prompt, are left out."""
    found = {arm: read_outcomes(study.folders(arm), GOLD) for arm in study.arms}
    return {arm: {seed: each for seed, each in seeds.items() if WHOLE not in each} for arm, seeds in found.items()}


def points(ours: Outcomes, theirs: Outcomes) -> Outcomes:
    """1, 0.5 or 0 for each seed and prompt that both have: ours is higher, equal, lower."""
    found: dict[int, dict[str, float]] = {}
    for seed in sorted(ours.keys() & theirs.keys()):
        common = sorted(ours[seed].keys() & theirs[seed].keys())
        if common:
            gaps = {prompt: ours[seed][prompt] - theirs[seed][prompt] for prompt in common}
            found[seed] = {prompt: 0.5 + 0.5 * float(np.sign(gap)) for prompt, gap in gaps.items()}
    return found


def matrix(gold: Mapping[str, Outcomes], label: str) -> Table:
    """Row against column for every two arms of `gold`."""
    names = tuple(gold)
    found = {(row, column): _share(gold[row], gold[column]) for row, column in combinations(names, 2)}
    found |= {(column, row): _mirrored(share) for (row, column), share in found.items()}
    cells = [[found.get((row, column), _NOTHING) for column in names] for row in names]
    return Table(
        title=f"Win rate by gold{f', {label}' if label else ''}",
        columns=("row beats column", *names),
        rows=tuple((name, *(_text(share) for share in row)) for name, row in zip(names, cells, strict=True)),
        shades=tuple((None, *(None if share is None else 2 * share - 1 for share, _ in row)) for row in cells),
    )


def _share(ours: Outcomes, theirs: Outcomes) -> Share:
    found = mean_interval(points(ours, theirs), SHARE)
    if found is None:
        return _NOTHING
    clear = found.low is not None and found.high is not None and not found.low <= 0.5 <= found.high
    return found.mean, clear


def _mirrored(share: Share) -> Share:
    return None if share[0] is None else 1 - share[0], share[1]


def _text(share: Share) -> str:
    return number(share[0], 2) + ("*" if share[1] else "")

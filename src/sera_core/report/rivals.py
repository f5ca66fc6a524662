"""Arm against arm: how often one answers a prompt better than the other, by gold."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np

from sera_core.report.blocks import Block, Section, Table, Text, number
from sera_core.report.study import Study
from sera_core.statistics.intervals import LEVEL, SHARE, WHOLE, Outcomes, mean_interval
from sera_core.statistics.metrics import GOLD
from sera_core.statistics.outcomes import read_outcomes
from sera_core.statistics.wording import PROMPTS_ALONE


class Share(NamedTuple):
    """How often one arm beats another, whether the interval leaves out 0.5, and whether it is of a single seed."""

    mean: float | None
    clear: bool
    one_seed: bool


_NOTHING = Share(None, clear=False, one_seed=False)


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
            f"whose {LEVEL:.0%} interval over seeds and prompts leaves out 0.5, not corrected for the number of pairs: "
            f"of twenty pairs that do not differ one is marked. {PROMPTS_ALONE} marks pairs with one seed in common, "
            "whose interval is over its prompts alone; another seed may lie outside."
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
        shades=tuple((None, *(None if share.mean is None else 2 * share.mean - 1 for share in row)) for row in cells),
    )


def _share(ours: Outcomes, theirs: Outcomes) -> Share:
    found = mean_interval(points(ours, theirs), SHARE)
    if found is None:
        return _NOTHING
    clear = found.low is not None and found.high is not None and not found.low <= 0.5 <= found.high
    return Share(found.mean, clear, found.seeds == 1)


def _mirrored(share: Share) -> Share:
    return share if share.mean is None else share._replace(mean=1 - share.mean)


def _text(share: Share) -> str:
    return number(share.mean, 2) + "*" * share.clear + PROMPTS_ALONE * share.one_seed

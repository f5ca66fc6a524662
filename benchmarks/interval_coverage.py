"""How often the intervals of `sera ablate` hold the truth: simulated ablations with few seeds.

    python benchmarks/interval_coverage.py [--ablations 2000] [--seeds 3 5 10] [--prompts 128 512] [--json]

Two arms answer the same prompts under each seed. The quality of an answer is normal: the arm's skill plus what the
seed, the arm's own run of the seed, the prompt, the arm on this prompt and the opponent's draw add. Far enough above 0
it wins, below it loses, between it ties, so the win rates over all seeds and prompts there could be are known exactly.
`spread` is the standard deviation of the win rate over seeds: none, typical of small models, or the larger part of all
chance. Prompts are other ones under every seed, other ones that go by the same names, or the same ones.

A cell gives the share of ablations whose 95 % interval holds the true win rate of the better arm, and that whose
interval holds the true difference, both of those that have one; `bootstrap` is what percentiles of a bootstrap over
seeds, and prompts within them, would do for the difference. `alarm` is the share of ablations of two arms alike in
skill whose difference has p < 0.05. The standard error of a share near 0.95 of 2,000 is 0.005.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import product

import numpy as np
from scipy.stats import norm

from sera_core.records import Floats
from sera_core.statistics.compare import p_value
from sera_core.statistics.intervals import ALPHA, SHARE, Interval, interval

SKILLS = (0.95, 0.70)
TIE = 0.15
# Standard deviations of quality: prompt, arm on this prompt, and the opponent's draw, which both arms meet.
PROMPT, OWN, OPPONENT = 0.6, 0.4, 0.5
SPREADS = {"none": 0.0, "typical": 0.02, "large": 0.10}
DESIGNS = ("other prompts", "other prompts, same names", "same prompts")
KINDS = ("win_rate", "difference", "bootstrap", "alarm")
WANTED = (0.93, 0.97)
DRAWS = 400


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of ablation."""

    design: str
    spread: str
    seeds: int
    prompts: int

    @property
    def stream(self) -> list[int]:
        """What tells the random numbers of this cell from those of others."""
        return [DESIGNS.index(self.design), list(SPREADS).index(self.spread), self.seeds, self.prompts]


def total_deviation(over_seeds: float) -> float:
    """Standard deviation of quality; `over_seeds` is that of the common and of the arm's own part of a seed."""
    return float(np.sqrt(1 + 2 * over_seeds**2 + PROMPT**2 + OWN**2 + OPPONENT**2))


def over_seeds_of(spread: float) -> float:
    """The standard deviation of either part of a seed that makes the better arm's win rate vary by about `spread`."""
    total = total_deviation(0)
    return float(spread * total / norm.pdf(SKILLS[0] / total) / np.sqrt(2))


def truths(over_seeds: float) -> list[float]:
    """The win rate of each arm over all seeds and prompts."""
    total = total_deviation(over_seeds)
    return [float(norm.cdf((skill - TIE) / total) + norm.cdf((skill + TIE) / total)) / 2 for skill in SKILLS]


def simulate(
    cell: Cell, over_seeds: float, generator: np.random.Generator, skills: tuple[float, float] = SKILLS
) -> Floats:
    """Points float64 [arm, seed, prompt] of one ablation."""
    shape = (cell.seeds, cell.prompts)
    asked = (1, cell.prompts) if cell.design == "same prompts" else shape
    draw = generator.standard_normal
    common = over_seeds * draw((cell.seeds, 1)) + PROMPT * draw(asked) + OPPONENT * draw(shape)
    own = over_seeds * draw((2, cell.seeds, 1)) + OWN * draw((2, *asked)) + draw((2, *shape))
    quality = np.array(skills)[:, None, None] + common + own
    points: Floats = 0.5 * ((quality > TIE).astype(np.float64) + (quality > -TIE))
    return points


def laid_out(values: Floats, design: str) -> Floats:
    """Values [seed, prompt] as they are read from runs: other prompts have columns of their own."""
    if design != DESIGNS[0]:
        return values
    seeds, prompts = values.shape
    wide = np.full((seeds, seeds, prompts), np.nan)
    wide[range(seeds), range(seeds)] = values
    return wide.reshape(seeds, -1)


def holds(found: Interval, truth: float) -> float:
    """1 where the truth lies in an interval, else 0; nan without an interval."""
    return float("nan") if found.low is None or found.high is None else float(found.low <= truth <= found.high)


def alarmed(found: Interval) -> bool:
    """Whether a difference is called one."""
    p = p_value(found)
    return p is not None and p < ALPHA


def bootstrap_holds(values: Floats, truth: float, generator: np.random.Generator) -> bool:
    """Whether the truth lies between percentiles of means of seeds drawn again, with prompts drawn again in each."""
    seeds, prompts = values.shape
    drawn = generator.integers(seeds, size=(DRAWS, seeds))
    # The mean of a hundred prompts drawn again is as good as normal.
    noise = values.std(axis=1)[drawn] / np.sqrt(prompts) * generator.standard_normal((DRAWS, seeds))
    low, high = np.quantile((values.mean(axis=1)[drawn] + noise).mean(axis=1), [0.025, 0.975])
    return bool(low <= truth <= high)


def coverage(cell: Cell, ablations: int) -> dict[str, float]:
    """Share of ablations in which each kind of interval holds the truth, and of false alarms."""
    generator, over_seeds = np.random.default_rng(cell.stream), over_seeds_of(SPREADS[cell.spread])
    of_equals = np.random.default_rng([*cell.stream, 1])
    better, worse = truths(over_seeds)
    held = np.zeros((ablations, len(KINDS)))
    for number in range(ablations):
        points = simulate(cell, over_seeds, generator)
        gap = points[0] - points[1]
        equals = simulate(cell, over_seeds, of_equals, (SKILLS[0], SKILLS[0]))
        held[number] = (
            holds(interval(laid_out(points[0], cell.design), SHARE), better),
            holds(interval(laid_out(gap, cell.design), (-1.0, 1.0)), better - worse),
            bootstrap_holds(gap, better - worse, generator),
            alarmed(interval(laid_out(equals[0] - equals[1], cell.design), (-1.0, 1.0))),
        )
    return dict(zip(KINDS, np.nanmean(held, axis=0).tolist(), strict=True))


def cells(seeds: Iterable[int], prompts: Iterable[int]) -> list[Cell]:
    """Every kind of ablation."""
    return [Cell(*values) for values in product(DESIGNS, SPREADS, seeds, prompts)]


def main() -> None:
    """Simulate every cell and print its coverage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ablations", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5, 10])
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--json", action="store_true", help="print JSON for programs, nothing else")
    options = parser.parse_args()
    heads = ("prompts", "spread over seeds", "seeds", "prompts each", *KINDS)
    if not options.json:
        print(f"win rates {', '.join(f'{rate:.3f}' for rate in truths(0))}; spreads {SPREADS}")
        print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    rows = []
    for cell in cells(options.seeds, options.prompts):
        found = coverage(cell, options.ablations)
        rows.append({**asdict(cell), **found})
        if not options.json:
            print(
                f"| {' | '.join(map(str, asdict(cell).values()))} | {' | '.join(f'{x:.3f}' for x in found.values())} |"
            )
    ours = [row[kind] for row in rows for kind in KINDS[:2]]
    error = (0.95 * 0.05 / options.ablations) ** 0.5
    summary = {"least": min(ours), "mean": sum(ours) / len(ours), "largest": max(ours), "error": error}
    summary["alarms"] = max(row["alarm"] for row in rows)
    inside = sum(WANTED[0] <= share <= WANTED[1] for share in ours)
    if options.json:
        print(json.dumps({"ablations": options.ablations, "cells": rows, **summary}, indent=2))
    else:
        print(f"{inside} of {len(ours)} within {WANTED[0]:.0%} and {WANTED[1]:.0%}; {summary}")


if __name__ == "__main__":
    main()

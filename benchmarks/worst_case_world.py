"""Tables of docs/worst_case.md from the results of `sera ablate dro-world` and `sera ablate dro-few-pairs`.

    sera ablate dro-world --processes 2
    sera ablate dro-few-pairs --processes 2
    python benchmarks/worst_case_world.py runs/dro-world/results.json runs/dro-few-pairs/results.json

Win rates are compared at the default step and at equal KL to the initial policy. For the latter each arm's runs (one
per step size) are points (sqrt KL, win rate), and the baseline's win rate at an arm's KL is read off the line through
the baseline's points of the same seed. Strictly, only points within the baseline's own range of KL are compared; with
the initial policy, (0, 1/2), as one more point of the line more of them are, but win rates rise steeply there, and a
straight line understates the baseline. The verdict goes by the strict figure. Intervals are Student's over seeds.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from equal_kl import gaps_over_line, shown, win_and_kl

from sera_core.ablation_table import Estimate, estimate
from sera_core.statistics.outcomes import reported

BASELINES = {"dro-dpo": "dpo", "sera-dro-dpo": "sera-dpo"}
Cell = tuple[tuple[str, str], ...]


def load(path: Path) -> dict[Cell, dict[str, dict[str, dict[int, Any]]]]:
    """Cell (noise, rho) to arm to step size to seed to result; failed runs are an error."""
    found: dict[Cell, dict[str, dict[str, dict[int, Any]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(dict))
    )
    for result in json.loads(path.read_text(encoding="utf-8")):
        if result["error"] is not None:
            raise SystemExit(
                f"{result['arm']}, seed {result['seed']} failed: {result['error']}. Run the ablation again."
            )
        arm, *points = result["arm"].split(",")
        labels = dict(point.split("=") for point in points)
        step = labels.pop("step")
        found[tuple(labels.items())][arm][step][result["seed"]] = result
    return found


def at_equal_kl(
    arm: dict[str, dict[int, Any]], base: dict[str, dict[int, Any]], *, from_initial: bool
) -> tuple[Estimate | None, int]:
    """Mean difference of win rates at equal KL over seeds, and how many of the arm's points could be compared."""
    gaps, compared = [], 0
    initial = [(0.5, 0.0)] if from_initial else []
    for seed in next(iter(arm.values())):
        line = [*initial, *(win_and_kl(runs[seed]["report"]) for runs in base.values())]
        inside = gaps_over_line([win_and_kl(runs[seed]["report"]) for runs in arm.values()], line)
        compared += len(inside)
        if inside:
            gaps.append(float(np.mean(inside)))
    return (estimate(gaps) if gaps else None), compared


def verdict(value: Estimate | None) -> str:
    """In words: an interval that excludes 0 decides."""
    if value is None or value.low is None or value.high is None:
        return "not compared"
    return "better" if value.low > 0 else "worse" if value.high < 0 else "not distinguishable"


def default_table(cells: dict[Cell, Any]) -> list[str]:
    """Every arm at the default step."""
    lines = ["| data | arm | win rate | vs baseline | KL | gold reward |", "|---|---|---|---|---|---|"]
    for cell, arms in cells.items():
        for arm, steps in arms.items():
            runs = steps["default"]
            pairs = {seed: win_and_kl(run["report"]) for seed, run in runs.items()}
            base = BASELINES.get(arm)
            gap = None
            if base is not None:
                theirs = arms[base]["default"]
                gap = estimate([pairs[seed][0] - win_and_kl(theirs[seed]["report"])[0] for seed in pairs])
            gold = [reported(run["report"], "gold_reward") for run in runs.values()]
            lines.append(
                f"| {_named(cell)} | `{arm}` | {shown(estimate([win for win, _ in pairs.values()]))} | "
                f"{shown(gap, sign='+')} | {shown(estimate([kl for _, kl in pairs.values()]), 2)} | "
                f"{shown(estimate([value for value in gold if value is not None]))} |"
            )
    return lines


def matched_table(cells: dict[Cell, Any]) -> list[str]:
    """Each arm against its baseline at equal KL."""
    lines = [
        "| data | arm | win rate at equal KL, vs baseline | points | verdict | with the initial policy | points |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell, arms in cells.items():
        for arm, base in BASELINES.items():
            if arm in arms:
                strict, count = at_equal_kl(arms[arm], arms[base], from_initial=False)
                loose, more = at_equal_kl(arms[arm], arms[base], from_initial=True)
                lines.append(
                    f"| {_named(cell)} | `{arm}` | {shown(strict, sign='+')} | {count} | {verdict(strict)} | "
                    f"{shown(loose, sign='+')} | {more} |"
                )
    return lines


def weight_table(cells: dict[Cell, Any]) -> list[str]:
    """What the weights did to flipped pairs, at the default step: means over steps and seeds."""
    names = ("flipped_share", "flipped_among_up_weighted", "weight_flipped", "weight_clean", "effective_sample_size")
    lines = [f"| data | arm | {' | '.join(f'`{name}`' for name in names)} |", "|---|---|" + "---|" * len(names)]
    for cell, arms in cells.items():
        for arm in BASELINES:
            if arm in arms and any("weight_flipped" in run["steps"] for run in arms[arm]["default"].values()):
                found = [[run["steps"].get(name) for run in arms[arm]["default"].values()] for name in names]
                means = [np.mean([value for value in values if value is not None]) for values in found]
                lines.append(f"| {_named(cell)} | `{arm}` | {' | '.join(f'{mean:.2f}' for mean in means)} |")
    return lines


def _named(cell: Cell) -> str:
    return ", ".join(f"{key} {value}" for key, value in cell)


def main() -> None:
    """Print the tables of every results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="results.json of an ablation")
    for path in parser.parse_args().results:
        cells = load(path)
        for table in (default_table(cells), matched_table(cells), weight_table(cells)):
            print("\n".join(table), end="\n\n")


if __name__ == "__main__":
    main()

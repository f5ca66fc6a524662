"""Tables of docs/self_labelling.md from the results of `sera ablate spa-world` and `sera ablate sr-strength`.

    sera ablate spa-world --processes 2
    sera ablate sr-strength --processes 2
    python benchmarks/self_labelling_world.py runs/spa-world/results.json runs/sr-strength/results.json

Every arm has one row per noise rate: means over seeds with Student's intervals, differences paired by seed. An interval
of a difference that excludes 0 decides; no correction is made for the number of comparisons. Self-refinement lengthens
the step, so its arms are also compared at equal KL: DPO's runs of one seed, one for each step size, are points
(sqrt KL, win rate), and DPO's win rate at an arm's KL is read off the line through them; arms beyond its ends are left
out.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from equal_kl import gaps_over_line, shown, win_and_kl

from sera_core.ablation_table import Estimate, estimate
from sera_core.statistics.outcomes import reported

Runs = dict[str, dict[str, dict[int, Mapping[str, Any]]]]

COLUMNS = (
    ("win rate", "win_rate_vs_initial", 3),
    ("KL", "kl_to_initial", 2),
    ("gold", "gold_reward", 3),
    ("length", "response_length", 1),
    ("accuracy", "accuracy", 3),
    ("margin", "margin_mean", 2),
)
# DPO with longer and longer steps.
FRONTIER = ("dpo", "dpo-longer", "dpo-longest")
# Arms shown round by round.
ROUNDS = ("spa", "spa-dro", "spa-gentle")
# What each paper claims: (better, worse, metric), read from left to right.
CLAIMS = {
    "spa": (
        ("SPA beats DPO on the same tenth of the labels", "spa", "seed-only"),
        ("SPA from a tenth of the labels reaches DPO on all", "spa", "dpo"),
        ("refinement helps", "spa", "no-refinement"),
        ("de-coupled detection helps", "spa", "no-decoupling"),
        ("worst-case weights help SPA", "spa-dro", "spa"),
        ("worst-case weights make SPA beat DPO on the same tenth", "spa-dro", "seed-only"),
        ("a gentler step helps SPA", "spa-gentle", "spa"),
        ("SPA with a gentler step beats DPO on the same tenth", "spa-gentle", "seed-only"),
    ),
    "sr": tuple((f"self-refinement of strength {s} helps", f"sr-{s}", "dpo") for s in ("0.1", "0.2", "0.5", "1")),
}


def load(path: Path) -> Runs:
    """Noise to arm to seed to report; failed runs are an error."""
    found: Runs = defaultdict(lambda: defaultdict(dict))
    for result in json.loads(path.read_text(encoding="utf-8")):
        if result["error"] is not None:
            raise SystemExit(f"{result['arm']}, seed {result['seed']} failed: {result['error']}. Run it again.")
        arm, _, noise = result["arm"].partition(",noise=")
        found[noise][arm][result["seed"]] = result["report"]
    return found


def value(report: Mapping[str, Any], name: str) -> float:
    """One number of a report."""
    found = augmented(report) if name == "augmented" else reported(report, name)
    assert found is not None, name
    return found


def augmented(report: Mapping[str, Any]) -> float | None:
    """Held-out accuracy under the first prefix, None where there is none."""
    under = list(report.get("augmented", {}).values())
    return float(under[0]["accuracy"]) if under else None


def arms_table(runs: Runs) -> list[str]:
    """Every arm at every noise rate."""
    first = next(iter(next(iter(next(iter(runs.values())).values())).values()))
    columns = [*COLUMNS, *([("augmented accuracy", "augmented", 3)] if augmented(first) is not None else [])]
    lines = [row(["noise", "arm", *(head for head, _, _ in columns)]), row(["---"] * (len(columns) + 2))]
    for noise, arms in runs.items():
        for arm, seeds in arms.items():
            cells = [
                shown(estimate([value(report, name) for report in seeds.values()]), digits)
                for _, name, digits in columns
            ]
            lines.append(row([noise, f"`{arm}`", *cells]))
    return lines


def claims_table(runs: Runs) -> list[str]:
    """Each claim as a difference of win rates and of gold rewards, with its verdict in words."""
    kind = "spa" if any("spa" in arms for arms in runs.values()) else "sr"
    heads = [
        "claim",
        "noise",
        "win rate",
        "gold reward",
        "here",
        *(["win rate at equal KL", "seeds", "here"] * matched(runs)),
    ]
    lines = [row(heads), row(["---"] * len(heads))]
    for claim, ours, theirs in CLAIMS[kind]:
        for noise, arms in runs.items():
            win, gold = (difference(arms, ours, theirs, name) for name in ("win_rate_vs_initial", "gold_reward"))
            cells = [shown(win, 3, sign="+"), shown(gold, 3, sign="+"), verdict(win)]
            if matched(runs):
                gaps = at_equal_kl(arms, ours)
                found = estimate(gaps) if len(gaps) > 1 else None
                cells += [shown(found, 3, sign="+"), str(len(gaps))]
                cells += ["not compared" if found is None else verdict(found)]
            lines.append(row([claim, noise, *cells]))
    return lines


def matched(runs: Runs) -> bool:
    """Whether DPO ran with several step sizes."""
    return all(set(FRONTIER) <= set(arms) for arms in runs.values())


def at_equal_kl(arms: Mapping[str, dict[int, Mapping[str, Any]]], arm: str) -> list[float]:
    """Differences of win rates to DPO at the arm's KL, for the seeds where DPO's steps span it."""
    seeds = sorted(arms[arm])
    lines = {seed: [win_and_kl(arms[base][seed]) for base in FRONTIER] for seed in seeds}
    return [gap for seed in seeds for gap in gaps_over_line([win_and_kl(arms[arm][seed])], lines[seed])]


def difference(arms: Mapping[str, dict[int, Mapping[str, Any]]], ours: str, theirs: str, name: str) -> Estimate:
    """Mean paired difference over seeds."""
    return estimate([value(arms[ours][seed], name) - value(arms[theirs][seed], name) for seed in sorted(arms[ours])])


def rounds_table(folder: Path, runs: Runs) -> list[str]:
    """SPA round by round: iteration 1 is the seed stage. `own pairs` is the share its judge labels as gold would."""
    heads = ["noise", "arm", "iteration", "win rate", "vs the seed stage", "KL", "length", "own pairs right"]
    lines = [row(heads), row(["---"] * len(heads))]
    for noise, arms in runs.items():
        for arm in (name for name in ROUNDS if name in arms):
            reports = [iterations(folder / f"{arm},noise={noise}" / f"seed-{seed}") for seed in sorted(arms[arm])]
            for number, found in enumerate(zip(*reports, strict=True), start=1):
                cells = [shown(estimate([value(each, "win_rate_vs_initial") for each in found]), 2)]
                cells.append(shown(since_seed(reports, number), 2, sign="+") if number > 1 else "-")
                names = ("kl_to_initial", "response_length")
                cells += [shown(estimate([value(each, name) for each in found]), 2) for name in names]
                own = [(each["selection"].get("generated") or {}).get("accuracy") for each in found]
                right = [share for share in own if share is not None]
                lines.append(row([noise, f"`{arm}`", str(number), *cells, shown(estimate(right), 2) if right else "-"]))
    return lines


def since_seed(reports: list[list[Mapping[str, Any]]], number: int) -> Estimate:
    """Mean difference of win rates between an iteration and the first, of the same runs."""
    name = "win_rate_vs_initial"
    return estimate([value(run[number - 1], name) - value(run[0], name) for run in reports])


def iterations(run: Path) -> list[Mapping[str, Any]]:
    """The reports of a run's iterations, in order."""
    count = len(json.loads((run / "summary.json").read_text(encoding="utf-8"))["iterations"])
    paths = [run / f"iter_{number}" / "report.json" for number in range(1, count + 1)]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def verdict(gap: Estimate) -> str:
    """In words."""
    assert gap.low is not None
    assert gap.high is not None
    return "holds" if gap.low > 0 else "fails" if gap.high < 0 else "not distinguishable"


def row(cells: list[str]) -> str:
    """One row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the tables of every results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="results.json of an ablation")
    for path in parser.parse_args().results:
        runs = load(path)
        tables = [arms_table(runs), claims_table(runs)]
        if any(set(ROUNDS) & set(arms) for arms in runs.values()):
            tables.append(rounds_table(path.parent, runs))
        for table in tables:
            print("\n".join(table), end="\n\n")


if __name__ == "__main__":
    main()

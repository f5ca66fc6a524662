"""Writes docs/evidence.md: what papers claim, tested in the world. The claims and their tests are in evidence.yaml.

    sera ablate evidence --processes 2
    sera ablate spurious --processes 2
    sera ablate frontier --processes 2
    python docs/tables/evidence.py runs/evidence runs/spurious runs/frontier

Given the three folders, figures are measured from their runs and kept in evidence.json; the page is written from that
file alone, and without folders nothing is measured anew.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence_measure import FOLLOWED, NOISES, RHOS, WORTH, Check, limit, measure, read_claims
from page_table import table

from sera_core.report.blocks import between
from sera_core.report.study import read_study
from sera_core.statistics.compare import p_text
from sera_core.statistics.intervals import ALPHA
from sera_core.statistics.metrics import ACCURACY, GOLD, KL, LENGTH, METRICS, WIN_RATE

HERE = Path(__file__).parent
PAGE, FIGURES = HERE.parent / "evidence.md", HERE / "evidence.json"
SHOWN = (WIN_RATE, GOLD, ACCURACY, KL, LENGTH)
HEAD = """# What the papers claim, tested

Written by `python docs/tables/evidence.py` from the runs of `sera ablate evidence`, `sera ablate spurious` and
`sera ablate frontier`; a test keeps it so. All of it happens in [the world](world.md), where the right answer to every
prompt is known, a policy is small enough for {runs} runs, and what separates chosen from rejected is set by hand. What
holds here need not hold for language models, and the other way round; each claim names what decides it here.

Every method runs at its preset, with the step size the world recommends: {seeds} seeds, {noise} of the training labels
flipped, rho 0.2. Figures are means over seeds and prompts with 95 % intervals ([how](ablations.md#statistics)),
differences are paired by seed and prompt, and p is corrected for all {tests} tests of claims on this page (Holm).

- **holds**: p < {alpha}, in the direction of the claim.
- **does not hold**: p < {alpha} the other way, or, unless it holds, the whole interval lies below the least gain worth
  having ({worth}).
- **undecided**: neither.

*As well as* is tested against being worse by that least gain. Win rates are against the initial policy's answers.
"""


def main() -> None:
    """Measure if runs are given, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of the ablations evidence, spurious and frontier")
    runs = parser.parse_args().runs
    if len(runs) not in {0, 3}:
        parser.error(f"give three folders (evidence, spurious, frontier) or none, got {len(runs)}")
    if runs:
        FIGURES.write_text(json.dumps(measure(*map(read_study, runs)), indent=1) + "\n", "utf-8")
    PAGE.write_text(page(), "utf-8")


def page() -> str:
    """The whole page as Markdown."""
    found = json.loads(FIGURES.read_text("utf-8"))
    papers = read_claims()
    checks = found["checks"]
    tests = sum("p_holm" in each for each in checks.values())
    lines = [head(found, tests), *in_short(papers, checks)]
    for paper in papers:
        lines += section(paper, checks)
    lines += [
        *spurious(found["spurious"], found["seeds"]["spurious"]),
        *equal_kl(found["equal_kl"]),
        *every_arm(found["arms"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def head(found: Mapping[str, Any], tests: int) -> str:
    """What was run and how to read it."""
    return HEAD.format(
        runs=sum(found["runs"].values()),
        seeds=found["seeds"]["evidence"],
        noise=", ".join(percent(noise) for noise in NOISES),
        tests=tests,
        alpha=ALPHA,
        worth=", ".join(f"{least} in {title(figure)}" for figure, least in WORTH.items()),
    )


def in_short(papers: Iterable[Mapping[str, Any]], checks: Mapping[str, Any]) -> list[str]:
    """A row per claim, its verdict at each noise rate."""
    rows = []
    for paper in papers:
        for check in paper["claims"]:
            words = {point: verdict(check, checks[check.key(point)]) for point in check.points}
            cells = [words.get(point, "") for point in (*NOISES, "growth")]
            rows.append([paper["paper"], check.text, *cells])
    heads = ["", "claim", *(percent(noise) for noise in NOISES), "over noise"]
    return ["## In short", "", *table(heads, rows), ""]


def section(paper: Mapping[str, Any], checks: Mapping[str, Any]) -> Iterator[str]:
    """The claims of a paper with their figures, then what decides them here."""
    yield from (f"## {paper['paper']}", "", f"{paper['source']}.", "")
    rows = [
        [
            check.text,
            "0 to 40 %" if point == "growth" else percent(point),
            shown(checks[check.key(point)], check.digits, sign=True),
            p_text(checks[check.key(point)]["p_holm"]),
            verdict(check, checks[check.key(point)]),
        ]
        for check in paper["claims"]
        for point in check.points
    ]
    yield from table(["claim", "flipped", "difference", "p (Holm)", "here"], rows)
    if paper["causes"]:
        yield from ("", "What goes with it:", "")
        yield from table(["", *(percent(noise) for noise in NOISES)], [cause(each, checks) for each in paper["causes"]])
    yield from ("", "**What decides it.** " + filled(paper["decides"], checks))
    yield ""


def cause(check: Check, checks: Mapping[str, Any]) -> list[str]:
    """A figure at every noise rate; a dash where there is none."""
    found = [checks.get(check.key(noise)) for noise in NOISES]
    sign = check.theirs is not None
    return [check.text, *("-" if each is None else shown(each, check.digits, sign=sign) for each in found)]


def verdict(check: Check, found: Mapping[str, Any]) -> str:
    """In words, by the rule at the top of the page."""
    gap = check.sign * (found["mean"] + limit(check))
    if found["p_holm"] < ALPHA:
        return "holds" if gap > 0 else "does not hold"
    best = max(check.sign * found["low"], check.sign * found["high"])
    worth = WORTH.get(check.figure)
    return "does not hold" if worth is not None and not check.margin and best < worth else "undecided"


def spurious(found: Mapping[str, Any], seeds: int) -> list[str]:
    """What the strength of a spurious correlation does."""
    lines = ["## The strength of a spurious correlation", ""]
    lines += [
        "rho says how far useless fillers go with skill in the training pairs, so that a longer answer looks better",
        f"than it is. 20 % of the labels are flipped, {seeds} seeds (`sera ablate spurious`). The last column is rho",
        f"{RHOS[-1]} less rho {RHOS[0]}. The length correlation is that of the implicit reward on pairs in which",
        "length says nothing.",
        "",
    ]
    for figure, name, digits in ((WIN_RATE.name, "win rate", 3), ("length_correlation", "length correlation", 2)):
        rows = [
            [f"`{ours}` less `{theirs}`", *(shown(each, digits, sign=True) for each in found[key].values())]
            for ours, theirs in FOLLOWED
            if (key := f"{figure}: {ours} - {theirs}") in found
        ]
        lines += [*table([name, *(f"rho {rho}" for rho in RHOS), "change"], rows), ""]
    return lines


def equal_kl(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Families compared at equal KL."""
    rows = [
        [
            f"`{each['ours']}` less `{each['theirs']}`",
            shown(each, 3, sign=True),
            p_text(each["p_holm"]),
            f"{each['kl'][0]:.1f} to {each['kl'][1]:.1f}",
            "{} and {}".format(*each["inside"]),
            each["verdict"],
        ]
        for each in found
    ]
    return [
        "## At equal KL",
        "",
        "A longer step wins more by itself. With five step sizes for each method (`sera ablate frontier`, 20 % of the",
        "labels flipped), win rates compare where both went equally far from the initial policy; KL in nats per",
        "response. The fewer settings of both lie inside those KL, the more a line between two of them decides.",
        "",
        *table(["win rate", "difference", "p (Holm)", "KL compared", "settings inside", "verdict"], rows),
        "",
    ]


def every_arm(found: Mapping[str, Any]) -> list[str]:
    """A row per arm."""
    rows = [[f"`{arm}`", *(shown(each[metric.name], metric.digits) for metric in SHOWN)] for arm, each in found.items()]
    return ["## Every arm", "", *table(["arm", *(f"{metric.title}" for metric in SHOWN)], rows)]


def filled(text: str, checks: Mapping[str, Any]) -> str:
    """Text with figures in the place of checks' keys in braces, such as ``{kl_to_initial: spa - dpo, 0.2}``."""

    def figure(match: re.Match[str]) -> str:
        name = match[1].split(":")[0]
        digits = METRICS[name].digits if name in METRICS else 2
        return shown(checks[match[1]], digits, sign=" - 0" not in match[1])

    return re.sub(r"\{([^}]+)\}", figure, " ".join(text.split()))


def title(figure: str) -> str:
    """What a figure is called in a sentence."""
    return METRICS[figure].title if figure in METRICS else figure.replace("_", " ")


def shown(found: Mapping[str, Any], digits: int, *, sign: bool = False) -> str:
    """``mean [low, high]``."""
    return between(found["mean"], found["low"], found["high"], digits, "+" if sign else "")


def percent(noise: str) -> str:
    """A noise rate as a share in percent."""
    return f"{float(noise):.0%}".replace("%", " %")


if __name__ == "__main__":
    main()

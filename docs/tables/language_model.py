"""Writes docs/language_model.md: DPO, SeRA and self-refined DPO on a language model.

    python docs/tables/language_model.py runs/language-model

The runs are those of `COMMAND`. Given their folder, figures are measured from them and kept in language_model.json; the
page is written from that file alone, and without a folder nothing is measured anew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evidence import shown
from evidence_measure import plain
from page_table import table

from sera_core.report.study import Study, read_study
from sera_core.statistics.compare import compare
from sera_core.statistics.intervals import mean_interval
from sera_core.statistics.metrics import ACCURACY, ENDED, KL, LENGTH, MARGIN
from sera_core.statistics.outcomes import read_outcomes

HERE = Path(__file__).parent
PAGE, FIGURES = HERE.parent / "language_model.md", HERE / "language_model.json"
SHOWN = (ACCURACY, MARGIN, KL, LENGTH, ENDED)
COMPARED = (ACCURACY, KL, LENGTH)
COMMAND = (
    "sera ablate language-model source=path/to/hh_harmless source.limit=256 source.validation=100 source.evaluation=16 "
    "policy.model=smollm2-135m --processes 2"
)
HEAD = """# On a language model

Written by `python docs/tables/language_model.py` from the runs of

```console
{command}
```

with the harmlessness pairs of HH-RLHF; a test keeps it so. `{model}`, all weights trained in float32 on a CPU, {seeds}
seeds; pairs that do not fit {prompt} prompt and {response} response tokens are dropped, which leaves {pairs} for
training. `sr-dpo` and `dpo` pass over them three times, `sera-dpo` takes three iterations. Reference log-probs are the
initial policy's for `dpo` and `sr-dpo`, the iterate's before for `sera-dpo`. The policy's answers end after {tokens}
tokens at the latest.

Accuracy and margin are of implicit rewards on held-out pairs, against the initial policy, for which every margin is 0
and accuracy one half. Intervals are 95 % over seeds and pairs or prompts; p and the seeds needed for 80 % power allow
for the number of comparisons of a table ([how](ablations.md#statistics)). Nobody judged the answers. So few pairs and
steps show that all of it runs on real text and how wide the intervals are, not which method is the better one; the
world, where hundreds of runs are cheap, is for [that](evidence.md).
"""


def main() -> None:
    """Measure if runs are given, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="?", type=Path, help="folder of the ablation language-model")
    runs = parser.parse_args().runs
    if runs is not None:
        FIGURES.write_text(json.dumps(measure(read_study(runs)), indent=1) + "\n", "utf-8")
    PAGE.write_text(page(), "utf-8")


def measure(study: Study) -> dict[str, Any]:
    """All figures of the page."""
    outcomes = {metric: {arm: read_outcomes(study.folders(arm), metric) for arm in study.arms} for metric in SHOWN}
    config = study.runs[0].manifest["config"][-1]
    pairs = [run.report["pairs_offline"] for run in study.of(study.arms[0])]
    return {
        "seeds": len(study.seeds),
        "model": config["policy"]["model"],
        "tokens": config["tokens"],
        "answer": config["evaluation"]["sampling"]["max_new_tokens"],
        "pairs": [min(pairs), max(pairs)],
        "arms": {
            arm: {
                metric.name: plain(found)
                for metric in SHOWN
                if (found := mean_interval(outcomes[metric][arm], metric.bounds)) is not None
            }
            for arm in study.arms
        },
        "compared": {
            metric.name: [
                {
                    "ours": each.arm,
                    "theirs": each.baseline,
                    **plain(each.difference),
                    "p": each.p_shown,
                    "verdict": each.verdict,
                    "needed": each.needed_shown,
                }
                for each in compare(outcomes[metric], study.baseline, metric)
                if each.difference is not None
            ]
            for metric in COMPARED
        },
    }


def page() -> str:
    """The whole page as Markdown."""
    found = json.loads(FIGURES.read_text("utf-8"))
    least, most = found["pairs"]
    head = HEAD.format(
        command=COMMAND,
        model=found["model"],
        seeds=found["seeds"],
        prompt=found["tokens"]["max_prompt_tokens"],
        response=found["tokens"]["max_response_tokens"],
        pairs=least if least == most else f"{least} to {most}",
        tokens=found["answer"],
    )
    rows = [
        [f"`{arm}`", *(shown(each[metric.name], metric.digits) for metric in SHOWN)]
        for arm, each in found["arms"].items()
    ]
    titles = {ACCURACY: "held-out accuracy", MARGIN: "held-out margin", LENGTH: "length of answers (tokens)"}
    lines = [head, *table(["arm", *(titles.get(metric, metric.title) for metric in SHOWN)], rows), ""]
    heads = ["difference", "p (Holm)", "verdict", "seeds needed"]
    for metric in COMPARED:
        lines += [*table([titles.get(metric, metric.title), *heads], gaps(found, metric.name, metric.digits)), ""]
    return "\n".join(lines).rstrip() + "\n"


def gaps(found: Mapping[str, Any], metric: str, digits: int) -> list[list[str]]:
    """A row per arm that has a baseline."""
    return [
        [
            f"`{each['ours']}` less `{each['theirs']}`",
            shown(each, digits, sign=True),
            each["p"],
            each["verdict"],
            each["needed"],
        ]
        for each in found["compared"][metric]
    ]


if __name__ == "__main__":
    main()

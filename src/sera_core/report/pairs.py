"""The pairs that arms trained on: margins, weights, who was selected, who was dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from sera_core.report.blocks import NONE, Block, Chart, Figure, Section, Series, Table, Text, number, table
from sera_core.report.samples import missing, pooled, thinned
from sera_core.report.study import Run, Study

TRAINED = "train/pairs.arrow"
BINS = 24
# Margins of one runaway pair would squeeze all others into one bin; what lies outside is counted at the ends.
_TAIL = 0.005


def margins(study: Study) -> Section:
    """A histogram per arm of the final iteration's training pairs, those with a wrong label apart."""
    charts = []
    for arm in study.arms:
        frame = pooled(study, arm, TRAINED)
        if frame is not None and frame["margin"].notna().any():
            charts.append(histogram(arm, frame.dropna(subset=["margin"])))
    if not charts:
        return Section("margins", "Margins of training pairs", (missing(TRAINED),))
    text = Text(
        "Margins that training measured of its pairs the last time it saw them, in the final iteration, all seeds "
        "together, against the training reference: 0 for pairs of the first step, where that is the start. A method "
        "that resists noise leaves pairs with a flipped label at low margins."
    )
    return Section("margins", "Margins of training pairs", (text, Figure("margins", "Training margins", tuple(charts))))


def histogram(arm: str, frame: pd.DataFrame) -> Chart:
    """Counts of margins over common bins, stacked by what is known of the label."""
    values = frame["margin"].to_numpy(dtype=np.float64)
    low, high = np.quantile(values, [_TAIL, 1 - _TAIL])
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    series = []
    for label, part in _labelled(frame):
        counts, _ = np.histogram(np.clip(part["margin"], edges[0], edges[-1]), edges)
        series.append(Series(label, tuple(centres.tolist()), tuple(counts.astype(float).tolist())))
    return Chart(arm, "bars", "margin (the objective's unit)", "pairs (count)", tuple(series), tuple(edges.tolist()))


def _labelled(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Rows by what is known of their label; kinds without rows are left out."""
    flipped = frame["flipped"]
    generated = frame["origin"] == "generated"
    kinds = {
        "label right": flipped.eq(False) & ~generated,
        "label flipped": flipped.eq(True) & ~generated,
        "label unknown": flipped.isna() & ~generated,
        "generated": generated,
    }
    for label, chosen in kinds.items():
        if chosen.any():
            yield label, frame[chosen.to_numpy(dtype=bool)]


def weights(study: Study) -> Section:
    """Weight against confidence, for arms whose reweighter moved a weight."""
    charts = []
    for arm in study.arms:
        frame = pooled(study, arm, TRAINED)
        if frame is None:
            continue
        seen = frame.dropna(subset=["weight"])
        if not np.allclose(seen["weight"], 1.0):
            series = tuple(
                Series(label, tuple(part["confidence"]), tuple(part["weight"]))
                for label, part in _labelled(thinned(seen))
            )
            charts.append(Chart(arm, "points", "confidence in the label (probability)", "weight (1 = plain)", series))
    if not charts:
        return Section("weights", "Weight by confidence", (Text("No arm weighed its pairs: every weight is 1."),))
    return Section(
        "weights", "Weight by confidence", (Figure("weights", "Weight of pairs by confidence", tuple(charts)),)
    )


def selection(study: Study) -> Section:
    """How far arms, and iterations of an arm, trained on the same offline pairs."""
    chosen = {(run.arm, run.seed): _chosen(run) for run in study.runs}
    if not any(chosen.values()):
        return Section("selection", "Selected pairs", (missing(TRAINED),))
    text = Text(
        "Jaccard index of the offline pairs trained on: pairs in both divided by pairs in either, averaged over seeds; "
        "1 where nothing is selected. Generated pairs are left out: no two policies write the same ones. A dash: one "
        "of the two trained on no offline pair."
    )
    blocks: list[Block] = [text]
    for label, arms in study.groups.items():
        last = {study.short(arm): {run.seed: _last(chosen[arm, run.seed]) for run in study.of(arm)} for arm in arms}
        if len(arms) > 1:
            blocks.append(overlap_table(f"Between arms, final iteration{f', {label}' if label else ''}", last))
    blocks.append(_between_iterations(study, chosen))
    return Section("selection", "Selected pairs", tuple(blocks))


def jaccard(ours: frozenset[str], theirs: frozenset[str]) -> float | None:
    """Size of the intersection over size of the union, in [0, 1]; None where either is empty."""
    return len(ours & theirs) / len(ours | theirs) if ours and theirs else None


def overlap_table(title: str, chosen: Mapping[str, Mapping[int, frozenset[str]]]) -> Table:
    """Jaccard index of every two arms, averaged over the seeds both have; `chosen` is by arm and seed."""
    rows, shades = [], []
    for row, ours in chosen.items():
        found = [None if row == column else _mean_overlap(ours, theirs) for column, theirs in chosen.items()]
        rows.append((row, *(number(value, 2) for value in found)))
        shades.append((None, *found))
    return Table(title, ("", *chosen), tuple(rows), shades=tuple(shades))


def _mean_overlap(ours: Mapping[int, frozenset[str]], theirs: Mapping[int, frozenset[str]]) -> float | None:
    found = [jaccard(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else None


def _chosen(run: Run) -> dict[int, frozenset[str]]:
    """Ids of the offline pairs of each iteration that has evidence."""
    found = {}
    for iteration in range(1, run.final + 1):
        frame = run.evidence(TRAINED, iteration)
        if frame is not None:
            found[iteration] = frozenset(frame.loc[frame["origin"] == "offline", "pair"])
    return found


def _last(chosen: Mapping[int, frozenset[str]]) -> frozenset[str]:
    return chosen[max(chosen)] if chosen else frozenset()


def _between_iterations(study: Study, chosen: Mapping[tuple[str, int], Mapping[int, frozenset[str]]]) -> Table:
    """A row per arm: overlap of each iteration's offline pairs with the one before, and what selection left."""
    longest = max((max(found, default=0) for found in chosen.values()), default=0)
    rows = []
    for arm in study.arms:
        runs = study.of(arm)
        cells = []
        for iteration in range(2, longest + 1):
            before, now = (
                {run.seed: chosen[arm, run.seed][each] for run in runs if each in chosen[arm, run.seed]}
                for each in (iteration - 1, iteration)
            )
            cells.append(number(_mean_overlap(before, now), 2))
        rows.append((arm, *cells, *_shares(runs)))
    steps = [f"iterations {iteration - 1} and {iteration}" for iteration in range(2, longest + 1)]
    columns = ("arm", *steps, "offline pairs kept", "flipped before", "flipped after")
    note = "Flipped: share of known wrong labels before and after selection, final iteration."
    return table("Between iterations", columns, rows, note)


def _shares(runs: Sequence[Run]) -> tuple[str, str, str]:
    """Kept share, flipped share before and after, averaged over the runs' final iterations."""
    offline = [run.report.get("selection", {}).get("offline", {}) for run in runs]
    kept = [each["kept"] / each["pairs"] for each in offline if "kept" in each and each["pairs"]]
    shares = [
        [each[name] for each in offline if each.get(name) is not None]
        for name in ("flipped_share", "kept_flipped_share")
    ]
    before, after = (number(sum(values) / len(values), 3) if values else NONE for values in shares)
    return number(sum(kept) / len(kept), 2) if kept else NONE, before, after


def drops(study: Study) -> Section:
    """Pairs dropped by reason, averaged over seeds, in the final iteration."""
    found = {arm: [Counter(run.report["dropped"]) for run in study.of(arm)] for arm in study.arms}
    reasons = sorted(
        {reason for counts in found.values() for each in counts for reason, count in each.items() if count}
    )
    if not reasons:
        return Section("drops", "Dropped pairs", (Text("No pair was dropped."),))
    rows = []
    for arm, counts in found.items():
        cells = [
            number(sum(each[reason] for each in counts) / len(counts), 1) if counts else NONE for reason in reasons
        ]
        rows.append((arm, *cells))
    note = "Pairs per run in the final iteration, mean over seeds, by source and reason."
    return Section("drops", "Dropped pairs", (table("Dropped pairs by reason", ("arm", *reasons), rows, note),))

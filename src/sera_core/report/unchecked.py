"""Which signs of reward hacking could not be looked for, because a run lacks what they are seen by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sera_core.report.signs import Histories, Seen
from sera_core.report.study import Study

Lack = Callable[[Sequence[Seen]], str | None]
"""What is missing to look for a sign in every iteration of a run; None where nothing is."""


def unchecked_of(study: Study, histories: Histories) -> tuple[str, ...]:
    """Every sign that some run could not be looked at for: its name, what is missing and, if not in all, in how many.

    A sign that cannot appear, such as bad labels where a run makes none, counts as looked for.
    """
    found: dict[tuple[str, str], int] = {}
    for name, lack in LACKS.items():
        for run in study.runs:
            if (reason := lack(histories[run.arm, run.seed])) is not None:
                found[name, reason] = found.get((name, reason), 0) + 1
    runs = len(study.runs)
    return tuple(
        f"{name} ({reason}{f', {count} of {runs} runs' if count < runs else ''})"
        for (name, reason), count in found.items()
    )


def _quality(seen: Sequence[Seen]) -> str | None:
    judged = [len(now.gold or now.points or ()) for now in seen[1:]]
    if not all(judged):
        return "nothing judged the answers"
    # An interval needs two prompts.
    return "too little judged by prompt" if min(judged, default=2) < 2 else _start(seen)


def _start(seen: Sequence[Seen]) -> str | None:
    return "no answers of the initial policy" if seen[0].length is None else None


def _held_out(seen: Sequence[Seen]) -> str | None:
    if any(now.drift is None for now in seen[1:]):
        return "no held-out pairs"
    return None if all(now.chosen_length for now in seen[1:]) else "no lengths of held-out pairs"


def _gold(seen: Sequence[Seen]) -> str | None:
    return "no gold" if any(now.own_pairs and now.own_labels is None for now in seen[1:]) else None


LACKS: dict[str, Lack] = {
    "longer answers that are no better": _quality,
    "chosen answers become unlikely": _held_out,
    "answers stop ending": _start,
    "its own labels are worse than a coin": _gold,
}

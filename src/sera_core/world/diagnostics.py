"""What replies in the world look like: what they cover and what they add."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sera_core.errors import DataError
from sera_core.records import Response
from sera_core.world.gold import ended, gold_meta, tally
from sera_core.world.spec import FILLERS


def diagnose(responses: Sequence[Response]) -> dict[str, float]:
    """Means over at least one response.

    `filler`: filler words; `coverage` in [0, 1]: share of topics answered, rightly or not; `right` in [0, 1]: share of
    topics answered rightly; `extra`: words that answer no open topic, fillers included; `eos_rate` in [0, 1]: share
    that ended by themselves.

    Raises:
        DataError: a prompt carries no right answers, or there is no response.
    """
    if not responses:
        raise DataError("There is no response to diagnose; expected at least one.")
    names = ("filler", "coverage", "right", "extra", "eos_rate")
    rows = [_describe(response) for response in responses]
    return dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))


def _describe(response: Response) -> tuple[float, ...]:
    words = response.text.split()
    count = tally(gold_meta(response), words)
    fillers = sum(word in FILLERS for word in words)
    covered = (count.right + count.wrong) / count.topics
    return fillers, covered, count.right / count.topics, count.extra, float(ended(response))

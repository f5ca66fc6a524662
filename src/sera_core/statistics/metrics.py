"""The figures that arms are compared by: where their evidence lies, which way is better, which values they can take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sera_core.errors import ConfigError, suggest

Direction = Literal[-1, 0, 1]


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a run.

    `name` is its field in a report; `file` and `column` say where ``iter_<t>/evaluate`` holds it sample by sample.
    `direction` is 1 where more is better, -1 where less is, 0 where neither is by itself. `bounds` are the least and
    the largest possible value of the mean, None where there are none. `digits` is how many decimals a table shows.
    """

    name: str
    title: str
    unit: str
    file: str
    column: str
    direction: Direction = 0
    bounds: tuple[float, float] | None = None
    digits: int = 3


_SHARE = (0.0, 1.0)
# A single log-ratio may be negative; the KL that their mean estimates may not.
_FROM_ZERO = (0.0, math.inf)
WIN_RATE = Metric("win_rate_vs_initial", "win rate", "share", "samples.arrow", "points", 1, _SHARE)
GOLD = Metric("gold_reward", "gold", "gold reward", "samples.arrow", "gold", 1)
KL = Metric("kl_to_initial", "KL", "nats per response", "ancestral.arrow", "log_ratio", 0, _FROM_ZERO, 2)
LENGTH = Metric("response_length", "length", "tokens", "samples.arrow", "length", 0, _FROM_ZERO, 1)
ENDED = Metric("eos_rate", "ended", "share", "samples.arrow", "ended", bounds=_SHARE)
ACCURACY = Metric("accuracy", "accuracy", "share", "pairs.arrow", "margin", 1, _SHARE)
MARGIN = Metric("margin_mean", "margin", "the objective's margin", "pairs.arrow", "margin", digits=2)

METRICS = {metric.name: metric for metric in (WIN_RATE, GOLD, KL, LENGTH, ENDED, ACCURACY, MARGIN)}


def metric_of(name: str) -> Metric:
    """The metric that reports call `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in METRICS:
        raise ConfigError(f"No metric '{name}' to compare arms by. {suggest(name, METRICS)}")
    return METRICS[name]

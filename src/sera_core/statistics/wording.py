"""What the intervals of a table speak of, in words, and marks for those that speak of less than the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sera_core.statistics.intervals import LEVEL, Covers, Interval

PROMPTS_ALONE, SEEDS_ALONE = "†", "‡"
_MARKS: Mapping[Covers, str] = {"seeds and prompts": "", "prompts": PROMPTS_ALONE, "seeds": SEEDS_ALONE}
_TOLD: Mapping[Covers, str] = {
    "seeds and prompts": "over seeds and prompts",
    "prompts": "over prompts, of one seed; another seed may lie outside",
    "seeds": "over seeds alone, without evidence by prompt",
}


@dataclass(frozen=True, slots=True)
class Coverage:
    """The kinds of intervals that a table has, in the order of `_MARKS`, and whether some of its figures have none."""

    kinds: tuple[Covers, ...]
    bare: bool

    @classmethod
    def of(cls, intervals: Iterable[Interval | None]) -> Coverage:
        """Of the figures of a table; None is a cell without a figure."""
        found = {each.covers for each in intervals if each is not None}
        return cls(tuple(kind for kind in _MARKS if kind in found), "nothing" in found)

    def mark(self, interval: Interval | None) -> str:
        """What stands behind a figure; empty where all intervals of the table are of one kind, and without one."""
        return "" if interval is None or len(self.kinds) < 2 else _MARKS.get(interval.covers, "")

    @property
    def text(self) -> str:
        """A sentence on all intervals, the marks explained."""
        if not self.kinds:
            return "No intervals: one outcome, or outcomes all alike, do not show how far chance goes."
        several = len(self.kinds) > 1
        told = [f"{_MARKS[kind]} {_TOLD[kind]}".strip() if several else _TOLD[kind] for kind in self.kinds]
        bare = "; none where one outcome, or outcomes all alike, do not show how far chance goes" if self.bare else ""
        return f"{LEVEL:.0%} intervals {'; '.join(told)}{bare}."

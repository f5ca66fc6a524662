"""A stage of a run, as it is known before the run."""

from __future__ import annotations

from dataclasses import dataclass

POLICY = "policy"


@dataclass(frozen=True, slots=True)
class Foreseen:
    """A stage to come.

    `where` is its place in the run's folder, ``policy`` the making of the initial policy. Stages of one `signature`
    have one result; those of one `kind` differ in their seed alone; those of one `sort` do the same work for the same
    model and data, `load` times as much of it.
    """

    where: str
    name: str
    signature: str
    kind: str
    sort: str
    load: float = 1.0

"""What a run tells whoever watches it. The default says nothing; the command line draws progress bars and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol


class Reporter(Protocol):
    """Receives a run's progress, in order."""

    def stage_started(self, where: str) -> Callable[[int, int], None]:
        """A stage begins; the returned function is told (done, total)."""

    def stage_finished(self, where: str, seconds: float, reused: bool) -> None:
        """A stage ended, or a finished one was reused."""

    def iteration_finished(self, values: Mapping[str, Any]) -> None:
        """An iteration's report is written."""


class Silent:
    """A reporter that says nothing, for use as a library."""

    def stage_started(self, where: str) -> Callable[[int, int], None]:  # noqa: ARG002
        """Returns a function that ignores progress."""
        return lambda _done, _total: None

    def stage_finished(self, where: str, seconds: float, reused: bool) -> None:
        """Says nothing."""

    def iteration_finished(self, values: Mapping[str, Any]) -> None:
        """Says nothing."""

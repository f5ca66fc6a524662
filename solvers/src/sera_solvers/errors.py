"""The exceptions sera_solvers raises on purpose: one tree under `SolversError`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SolversError(Exception):
    """Anything the caller can act on: an argument that cannot be used, or a program that was not solved."""


class InputError(SolversError, ValueError):
    """An argument cannot be used.

    Attributes:
        argument: its name.
        expected: what would have been accepted.
        got: what came, in words.
        remedy: what to do next; may be empty.
    """

    def __init__(self, argument: str, expected: str, got: str, remedy: str = "") -> None:
        super().__init__(argument, expected, got, remedy)
        self.argument, self.expected, self.got, self.remedy = argument, expected, got, remedy

    def __str__(self) -> str:
        return f"{self.argument}: expected {self.expected}, got {self.got}.{_sentence(self.remedy)}"


class SolveError(SolversError, RuntimeError):
    """A solver stopped without an accurate optimum.

    Attributes:
        solver: its name, or the names tried in order.
        status: the status it reported.
        remedy: what to do next.
    """

    def __init__(self, solver: str, status: str, remedy: str) -> None:
        super().__init__(solver, status, remedy)
        self.solver, self.status, self.remedy = solver, status, remedy

    def __str__(self) -> str:
        return f"{self.solver}: expected an accurate optimum, got status {self.status!r}.{_sentence(self.remedy)}"


def unknown(argument: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a name that is not among `known`: it suggests the closest one and lists them all."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    remedy = f"Did you mean {close[0]!r}?" if close else ""
    return InputError(argument, f"one of {', '.join(names) or '(none)'}", repr(name), remedy)


def _sentence(text: str) -> str:
    return f" {text}" if text else ""

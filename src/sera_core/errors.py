"""The exceptions Sera raises on purpose: one tree under `SeraError`.

The command line prints a `SeraError` as one message without a traceback and exits with code 2, so every
message must name the thing, what was expected, what came and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SeraError(Exception):
    """Anything the user can act on: bad input, bad configuration, a missing or broken artefact."""


class ConfigError(SeraError):
    """The configuration names something unknown, contradictory or unusable."""


class PluginLoadError(SeraError):
    """A plugin could not be loaded or registered two things under one name."""


class DataError(SeraError):
    """A data set cannot be read, or holds rows that cannot be used."""


class ModelError(SeraError):
    """A model, tokenizer or adapter is missing, does not match, or produced non-finite numbers."""


class StoreError(SeraError):
    """A stored artefact is unreadable, or the disk refused to take a new one."""


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence that helps with an unknown name: the closest known names, then the whole sorted list.

    Returns text such as ``Did you mean 'dpo'? Known: dpo, ipo.``; without a close match only the list.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    hint = f"Did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    return f"{hint}Known: {', '.join(names) if names else '(none)'}."

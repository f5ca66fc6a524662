"""What all test folders share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _imports_are_not_collected() -> Iterator[None]:
    """Take everything imported so far out of garbage collections, of which each training asks for two.

    Walking through all that torch and transformers bring takes far longer than a tiny run itself.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()

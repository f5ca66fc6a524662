"""A place to train in, shared by the tests of a module."""

from __future__ import annotations

import gc

import pytest
from compositions import Place, write_pairs

from sera_core.testing.tiny import save_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compose")
    found = Place(folder, save_tiny_model(folder / "policy"), write_pairs(folder / "pairs.jsonl"), {})
    # Every training collects garbage; what was imported is none of it.
    gc.collect()
    gc.freeze()
    yield found
    gc.unfreeze()

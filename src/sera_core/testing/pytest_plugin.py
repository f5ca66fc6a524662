"""Fixtures for authors of plugins, available wherever sera-core is installed. Heavy imports happen when one is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sera_core.catalog import Catalog
    from sera_core.records import PairLogps


@pytest.fixture(scope="session")
def sera_catalog() -> Catalog:
    """The catalog of every installed plugin, as `sera` sees it."""
    from sera_core.catalog import load_catalog

    return load_catalog()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of about 10,000 parameters, a word-level tokenizer and a chat template."""
    from sera_core.testing.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("sera") / "tiny")


@pytest.fixture
def tiny_pair_logps() -> PairLogps:
    """Log-probs of six pairs, float32 [6], with reference."""
    from sera_core.testing.samples import pair_logps

    return pair_logps()

"""Training invariants compare bytes and exact zeros, which hold for one device: the CPU, unless a test asks for a GPU."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def cuda():
    """The GPU; a test without it does not see one."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def _on_cpu(request, monkeypatch):
    if "cuda" not in request.fixturenames:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

"""Networks small enough to train in every test."""

from pathlib import Path

import pytest

from anp_vs.networks import NETWORKS
from training.tiny import TinyConvolution, few, residual, traced


@pytest.fixture(autouse=True)
def tiny_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a test runs, recipes can name these networks."""
    monkeypatch.setitem(NETWORKS, "tiny-convolution", TinyConvolution)
    monkeypatch.setitem(NETWORKS, "residual", residual)
    monkeypatch.setitem(NETWORKS, "traced", traced)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a test runs, a whole training run takes a moment; undone in turn with what the test patches over it."""
    few(monkeypatch)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a run directory."""
    return tmp_path / "run"

"""Networks small enough to train in every test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from anp_vs.networks import NETWORKS
from training.tiny import TinyConvolution, patched, residual, traced


@pytest.fixture(autouse=True)
def tiny_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a test runs, recipes can name these networks."""
    monkeypatch.setitem(NETWORKS, "tiny-convolution", TinyConvolution)
    monkeypatch.setitem(NETWORKS, "residual", residual)
    monkeypatch.setitem(NETWORKS, "traced", traced)


@pytest.fixture
def tiny() -> Iterator[None]:
    """While a test runs, a whole training run takes a moment."""
    with patched():
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a run directory."""
    return tmp_path / "run"

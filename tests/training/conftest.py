"""Networks small enough to train in every test."""

import pytest

from anp_vs.networks import NETWORKS
from training.tiny import TinyConvolution, residual, traced


@pytest.fixture(autouse=True)
def tiny_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a test runs, recipes can name these networks."""
    monkeypatch.setitem(NETWORKS, "tiny-convolution", TinyConvolution)
    monkeypatch.setitem(NETWORKS, "residual", residual)
    monkeypatch.setitem(NETWORKS, "traced", traced)

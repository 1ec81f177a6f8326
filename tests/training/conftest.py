"""A network small enough to train in every test."""

import pytest

from anp_vs.networks import NETWORKS
from training.tiny import TinyConvolution


@pytest.fixture(autouse=True)
def tiny_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a test runs, `tiny-convolution` is a network that recipes can name."""
    monkeypatch.setitem(NETWORKS, "tiny-convolution", TinyConvolution)

"""Layers used twice or with several results: they stay whole, and what is compacted computes the same."""

import pytest
import torch
from torch import Tensor, nn

from anp_vs.pruning.compact import compact
from anp_vs.pruning.gate import gates
from anp_vs.pruning.insertion import insert_gates
from anp_vs.pruning.silent import without_silent
from anp_vs.pruning.twin import Twin


class SharedNormalisation(nn.Module):
    """One normalisation without parameters of its own behind two convolutions."""

    input_shape = (3, 12, 12)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.norm, self.relu = nn.BatchNorm2d(8, affine=False), nn.ReLU()
        self.last = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(images)))
        logits: Tensor = self.last(self.relu(self.norm(self.second(x))).mean((2, 3)))
        return logits


class Unpooling(nn.Module):
    """Pooling that also gives the places of the largest values."""

    input_shape = (3, 12, 12)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.next, self.last = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Linear(6, 5)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        pooled, places = self.pool(self.relu(self.conv(images)))
        logits: Tensor = self.last(self.relu(self.next(self.unpool(pooled, places))).mean((2, 3)))
        return logits


@pytest.mark.parametrize("kind", [SharedNormalisation, Unpooling])
def test_a_compact_network_and_the_twin_compute_the_same(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 12, 12)
    network = kind().eval()
    torch.testing.assert_close(Twin(network, images).build()(images), network(images))
    gated = insert_gates(kind()).eval()
    for gate in gates(gated).values():
        with torch.no_grad():
            gate.a_uc[::2] = -torch.inf
    torch.testing.assert_close(compact(gated, images)(images), gated(images))


def test_normalisation_by_the_batch_proves_nothing_silent() -> None:
    """Without running statistics a channel's values are those of its batch, which bounds of one image do not hold for."""
    torch.manual_seed(0)
    images = torch.rand(8, 1, 6, 6)
    norm = nn.BatchNorm2d(6, track_running_stats=False)
    network = nn.Sequential(nn.Conv2d(1, 6, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)).eval()
    with torch.no_grad():
        norm.bias.fill_(-0.5)
    small, silent = without_silent(network, images)
    assert silent == {}
    torch.testing.assert_close(small(images), network(images))

"""Copies of networks that keep what their last pass computed."""

import torch
from torch import Tensor, nn

from anp_vs.networks.copying import copied


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        self.seen = self.first(images).relu()
        return self.last(self.seen)  # type: ignore[no-any-return]


def test_a_network_that_keeps_its_features_can_be_copied_after_a_pass() -> None:
    network, images = Keeps(), torch.rand(5, 3)
    wanted = network(images)
    other = copied(network)
    assert torch.equal(other(images), wanted)
    assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in network.parameters()}
    other(images).sum().backward()  # its own weights learn, the first network's do not
    assert other.first.weight.grad is not None
    assert network.first.weight.grad is None


def test_shared_tensors_stay_shared() -> None:
    network = Keeps()
    other = copied(network, [network.last.weight])
    assert other.last.weight is network.last.weight
    assert other.last.bias is not network.last.bias

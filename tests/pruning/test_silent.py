"""Units that are zero on every image leave; the function stays; nothing else leaves."""

import copy
import logging

import pytest
import torch
from torch import Tensor, nn

from anp_vs.errors import InputError
from anp_vs.networks import build
from anp_vs.pruning.compact import compact
from anp_vs.pruning.insertion import insert_gates
from anp_vs.pruning.silent import without_silent
from pruning import zoo
from pruning.patterns import parameters, perturb


class Two(nn.Module):
    input_shape = (1, 1, 2)

    def __init__(self, weight: list[list[float]], bias: list[float]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, len(bias)), nn.Linear(len(bias), 3)
        self.first.weight.data, self.first.bias.data = torch.tensor(weight), torch.tensor(bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.first(images.flatten(1)).relu())  # type: ignore[no-any-return]


def test_a_unit_leaves_exactly_when_no_corner_of_the_box_makes_it_positive() -> None:
    # The largest value of w x + b over [0, 1]^2 is b plus the positive weights: -1, 0, 0.001, -0.5 (weights below 0), 2.
    network = Two([[2.0, -3.0], [1.0, -1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, 0.0]], [-3.0, -1.0, -1.999, -0.5, 1.0])
    images = torch.rand(500, 1, 1, 2)
    images[:4] = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).view(4, 1, 1, 2)
    before = copy.deepcopy(network.state_dict())
    small, left = without_silent(network)
    assert left == {"second": 3}
    assert torch.equal(small.first.bias, torch.tensor([-1.999, 1.0]))
    assert torch.equal(small.second.weight, network.second.weight[:, [2, 4]])  # to the last bit: nothing is folded in
    torch.testing.assert_close(small(images), network(images))
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())


def test_a_layer_that_reads_nothing_but_zeros_is_left_alone() -> None:
    network = Two([[-1.0, -1.0], [-2.0, -1.0]], [0.0, -1.0])
    small, left = without_silent(network)
    assert left == {}
    assert parameters(small) == parameters(network)
    assert small is not network
    assert not {p.data_ptr() for p in small.parameters()} & {p.data_ptr() for p in network.parameters()}


def silenced(network: nn.Module, share: float) -> nn.Module:
    """Some channels of every batch normalisation answer with a negative constant, as weights that train on can make them."""
    torch.manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            dead = torch.rand(len(module.weight)) < share
            module.weight.data[dead], module.bias.data[dead] = 0.0, -1.0
    return network


@pytest.mark.parametrize("name", ["vgg16", "resnet18", "mobilenetv2", "squeezenet"])
def test_silenced_channels_leave_networks_of_every_structure(name: str) -> None:
    torch.manual_seed(0)
    network = silenced(perturb(build(name) if name == "vgg16" else zoo.build(name)).eval(), 0.4)
    images = torch.rand(3, *network.input_shape).to(next(network.parameters()).dtype)  # type: ignore[misc]
    small, left = without_silent(network)
    assert sum(left.values()) > 0
    assert parameters(small) < parameters(network)
    with torch.no_grad():
        wanted = network.double()(images.double())
        assert (small.double()(images.double()) - wanted).abs().max() <= 1e-9 * wanted.abs().max()
    again, more = without_silent(small)
    assert more == {}
    assert parameters(again) == parameters(small)


class Fork(nn.Module):
    """Two layers read the same channels, each through a normalisation of its own."""

    input_shape = (1, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(1, 4, 1), nn.Linear(6, 2)
        self.left, self.right = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.a, self.b = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        both = torch.cat([self.a(self.left(x).relu()), self.b(self.right(x).relu())], 1)
        return self.fc(both.mean((2, 3)))  # type: ignore[no-any-return]


def test_a_unit_that_one_of_its_readers_still_sees_stays() -> None:
    torch.manual_seed(0)
    network = Fork().eval()
    network.stem.weight.data.fill_(1.0)
    network.stem.bias.data.fill_(0.1)  # type: ignore[union-attr]
    for norm, silent in ((network.left, [0, 1]), (network.right, [1, 2])):
        norm.weight.data[silent], norm.bias.data[silent] = 0.0, -1.0
    small, left = without_silent(network)
    assert left == {"a": 1}
    assert torch.equal(small.stem.bias, network.stem.bias[[0, 2, 3]])  # type: ignore[index]
    images = torch.rand(5, 1, 4, 4)
    torch.testing.assert_close(small(images), network(images))


def test_units_that_training_silenced_leave_a_compact_network_too() -> None:
    torch.manual_seed(1)
    gated = perturb(insert_gates(build("lenet5-caffe"))).eval()
    gated.gate3.a_uc.data[::3] = -torch.inf  # type: ignore[union-attr, operator]  # a selection of flattened pixels remains
    small = compact(gated)
    small.conv1.bias.data[:4], small.fc1.bias.data[5] = -100.0, -1e9  # type: ignore[union-attr, operator, index]
    images = torch.rand(20, 1, 28, 28)
    smaller, left = without_silent(small)
    assert left["conv2"] == 4
    assert left["fc2"] >= 1
    assert not smaller.fc1.bias.lt(-1e8).any()  # type: ignore[union-attr, operator]
    assert smaller.conv1.weight.shape[0] == small.conv1.weight.shape[0] - 4  # type: ignore[union-attr, operator]
    torch.testing.assert_close(smaller(images), small(images), rtol=1e-5, atol=1e-5)


def test_where_no_bounds_are_known_nothing_leaves_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    with caplog.at_level(logging.INFO):
        small, left = without_silent(network, torch.rand(1, 1, 6, 6))
    assert left == {}
    assert parameters(small) == parameters(network)
    assert "No unit is proven silent: interval bounds through GELU" in caplog.text
    with pytest.raises(InputError, match="has gates"):
        without_silent(insert_gates(build("lenet5-caffe")))

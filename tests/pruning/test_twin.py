"""The compact twin that attacks see: the network's function and input gradient, for any pattern."""

import copy
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from anp_vs.networks import build
from anp_vs.pruning.gate import Gate, gates
from anp_vs.pruning.graph import example_for
from anp_vs.pruning.insertion import insert_gates
from anp_vs.pruning.shrinking import shrink
from anp_vs.pruning.twin import Twin
from pruning.patterns import dead_patterns, images_for, kill, perturb


@cache
def network_of(name: str, with_gates: bool) -> nn.Module:
    torch.manual_seed(0)
    network = build(name)
    return perturb(insert_gates(network) if with_gates else network).double()


def logits_and_gradient(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    images = images.clone().requires_grad_()
    logits = network(images)
    (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum() + logits[:, 0].sum(), images)
    return logits.detach(), gradient


def assert_twin(network: nn.Module, twin: nn.Module, images: Tensor) -> None:
    network.eval()
    for found, wanted in zip(logits_and_gradient(twin, images), logits_and_gradient(network, images), strict=True):
        scale = float(wanted.abs().max()) or 1.0  # everything may be dead
        torch.testing.assert_close(found / scale, wanted / scale, rtol=0, atol=1e-10)
    assert not any(isinstance(m, Gate | nn.BatchNorm1d | nn.BatchNorm2d) for m in twin.modules())
    assert not any(p.requires_grad for p in twin.parameters())


@given(dead_patterns())
@settings(max_examples=15)
def test_twin_of_lenet(pattern: tuple[int, dict[int, float]]) -> None:
    network = network_of("lenet5-caffe", True)
    kill(network, pattern)
    assert_twin(network, Twin(network, example_for(network)).build(), images_for(network))


@pytest.mark.parametrize("channels_last", [True, False])
def test_twin_of_vgg(channels_last: bool) -> None:
    network = network_of("vgg16", True)
    kill(network, (3, {0: 0.9, 1: 0.5, 2: 0.8, 3: 1.0}))
    twin = Twin(network, example_for(network), channels_last=channels_last).build()
    assert_twin(network, twin, images_for(network))


@pytest.mark.parametrize("name", ["lenet5-caffe", "vgg16"])
def test_twin_of_a_network_without_gates(name: str) -> None:
    network = network_of(name, False)
    assert_twin(network, Twin(network, example_for(network)).build(), images_for(network))


class ReadAgain(nn.Module):
    """A ReLU's input is read a second time: its output, if the ReLU is in place."""

    def __init__(self, inplace: bool, view: bool) -> None:
        super().__init__()
        self.one, self.two, self.dense = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3), nn.Linear(6, 10)
        self.act, self.pool, self.view = nn.ReLU(inplace), nn.MaxPool2d(2), view

    def forward(self, images: Tensor) -> Tensor:
        x = self.one(images)
        again = x.flatten(2) if self.view else x  # the same memory either way
        y = self.two(self.pool(self.act(x)))
        logits: Tensor = self.dense(y.mean((2, 3)) + again.flatten(2).mean(2))
        return logits


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("view", [True, False])
def test_twin_of_a_network_that_reads_a_relus_input_again(inplace: bool, view: bool) -> None:
    torch.manual_seed(0)
    network, images = ReadAgain(inplace, view).double(), torch.rand(3, 1, 12, 12).double()
    assert_twin(network, Twin(network, images).build(), images)


def test_one_trace_serves_every_later_state() -> None:
    """Weights learn and units die between two builds; what was built before does not move."""
    network = copy.deepcopy(network_of("lenet5-caffe", True)).train()
    maker = Twin(network, example_for(network))
    images = images_for(network)
    first = maker.build()
    held = first(images)
    perturb(network, seed=1)
    kill(network, (5, {0: 0.5, 1: 0.5, 2: 0.5, 3: 0.5}))
    assert_twin(network, maker.build(), images)
    network.train()
    shrink(network, {name: ~gate.alive() for name, gate in gates(network).items()})
    assert network.training
    assert_twin(network, Twin(network, example_for(network)).build(), images)
    assert held.shape == (2, 10)


def test_building_leaves_the_network_in_training() -> None:
    network = network_of("vgg16", True).train()
    wanted = {name: p.requires_grad for name, p in network.named_parameters()}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    Twin(network, example_for(network)).build()(images_for(network))
    assert wanted == {name: p.requires_grad for name, p in network.named_parameters()}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())

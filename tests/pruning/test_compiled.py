"""A compiled twin: the function of the plain one while the weights move, and one compilation for all of them."""

import copy
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anp_vs.attacks.losses import ce
from anp_vs.attacks.prediction import input_gradient
from anp_vs.errors import RunError
from anp_vs.networks import build
from anp_vs.pruning.compiled import Compiled
from anp_vs.pruning.gate import gates
from anp_vs.pruning.graph import example_for
from anp_vs.pruning.insertion import insert_gates
from anp_vs.pruning.precision import Precision
from anp_vs.pruning.shrinking import shrink
from anp_vs.pruning.twin import Twin
from pruning.patterns import images_for, perturb


class Counting:
    """A backend that runs what was traced as it is, and counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


def gated() -> nn.Module:
    torch.manual_seed(0)
    return perturb(insert_gates(build("lenet5-caffe")))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_move_and_nothing_is_compiled_again(precision: Precision) -> None:
    network, backend = gated(), Counting()
    images, labels = images_for(network).float(), torch.tensor([1, 2])
    maker, compiled = Twin(network, example_for(network), precision=precision), Compiled(backend)
    first = compiled.take(maker.build(own_kernels=False), images, labels)
    for _ in range(3):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        taken = compiled.take(maker.build(own_kernels=False), images, labels)
        assert taken is first
        plain = maker.build(own_kernels=False)
        torch.testing.assert_close(taken(images), plain(images))
        found, wanted = (input_gradient(n, images, labels, ce) for n in (taken, plain))
        torch.testing.assert_close(found, wanted)
    assert backend.count <= 2  # with a gradient, and without
    dead = {name: torch.arange(gate.units) % 2 == 0 for name, gate in gates(network).items()}
    shrink(network, dead)
    smaller = Twin(network, example_for(network), precision=precision).build(own_kernels=False)
    taken = compiled.take(smaller, images, labels)
    assert taken is not first
    torch.testing.assert_close(taken(images), smaller(images))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch's own compiler
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_by_the_real_compiler() -> None:
    network = gated()
    images = images_for(network).float()
    labels = torch.zeros(len(images), dtype=torch.int64)
    maker, compiled = Twin(network, example_for(network)), Compiled()
    taken = []
    for _ in range(2):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        twin = maker.build(own_kernels=False)
        taken.append(compiled.take(copy.deepcopy(twin), images, labels))
        found, wanted = (input_gradient(n, images, labels, ce) for n in (taken[-1], twin))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert taken[0] is taken[1]


def test_a_compiler_that_fails_says_what_to_do() -> None:
    def broken(graph: object, inputs: object) -> Any:
        raise ValueError("no such thing as a compiler\nand more")

    network = gated()
    images = images_for(network).float()
    labels = torch.zeros(len(images), dtype=torch.int64)
    twin = Twin(network, example_for(network)).build(own_kernels=False)
    with pytest.raises(RunError, match="no such thing as a compiler and more"):
        Compiled(broken).take(twin, images, labels)

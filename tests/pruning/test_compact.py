"""Compaction and shrinking of the built-in networks: the same function, and exactly the size that is left."""

import copy
import itertools
import logging
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from anp_vs.errors import InputError
from anp_vs.networks import build
from anp_vs.networks.layers import Dropout
from anp_vs.pruning.compact import compact
from anp_vs.pruning.gate import gates
from anp_vs.pruning.insertion import insert_gates
from anp_vs.pruning.resizing import resize
from anp_vs.pruning.shrinking import shrink
from anp_vs.pruning.slicing import Select, take
from anp_vs.serialization import load, save
from pruning.patterns import (
    assert_same_function,
    dead_patterns,
    images_for,
    kill,
    no_gate_left,
    parameters,
    perturb,
)

PATTERN = (7, {0: 0.6, 1: 0.3, 2: 0.9, 3: 0.2})


@cache
def gated(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return perturb(insert_gates(build(name))).to(dtype).eval()


@given(dead_patterns())
@settings(max_examples=25)
def test_compact_lenet_is_the_gated_network_for_any_pattern(pattern: tuple[int, dict[int, float]]) -> None:
    network = gated("lenet5-caffe")
    kill(network, pattern)
    small = compact(network)
    assert no_gate_left(small)
    assert_same_function(network, small, images_for(network))
    # The size in closed form, from the units that are alive.
    alive = {name: gate.alive() for name, gate in gates(network).items()}
    first, second, dense = (int(alive[name].sum()) for name in ("gate1", "gate2", "gate4"))
    flat = alive["gate3"] & alive["gate2"].repeat_interleave(16)
    needed = alive["gate2"] & alive["gate3"].view(50, 16).any(1)  # a channel all of whose pixels are dropped goes
    columns, second = (int(flat.sum()), int(needed.sum())) if flat.any() else (1, 1)
    wanted = first * 26 + second * (25 * first + 1) + dense * (columns + 1) + 10 * (dense + 1)
    assert parameters(small) == wanted


@given(dead_patterns())
@settings(max_examples=3)
def test_compact_vgg_is_the_gated_network_for_any_pattern(pattern: tuple[int, dict[int, float]]) -> None:
    network = gated("vgg16")
    kill(network, pattern)
    small = compact(network)
    assert no_gate_left(small)
    assert_same_function(network, small, images_for(network))
    widths = [3, *(int(gate.alive().sum()) for gate in gates(network).values())]
    wanted = sum(out * (9 * inputs + 3) for inputs, out in itertools.pairwise(widths[:14]))
    wanted += widths[14] * (widths[13] + 3) + 10 * (widths[14] + 1)
    assert parameters(small) == wanted


def test_widths_at_a_multiple_compute_the_same() -> None:
    network = gated("vgg16")
    kill(network, PATTERN)
    small, padded = compact(network), compact(network, multiple=8)
    assert_same_function(network, padded, images_for(network))
    tight, wide, units = (
        [m.out_channels for m in each.modules() if isinstance(m, nn.Conv2d)] for each in (small, padded, network)
    )
    assert wide == [min(unit, -(-width // 8) * 8) for unit, width in zip(units, tight, strict=True)]
    assert wide != tight
    lenet = gated("lenet5-caffe")
    kill(lenet, PATTERN)
    assert_same_function(lenet, compact(lenet, multiple=8), images_for(lenet))


def test_a_multiple_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="multiple is 0"):
        compact(gated("lenet5-caffe"), multiple=0)


@pytest.mark.parametrize("name", ["lenet5-caffe", "vgg16"])
def test_single_precision(name: str) -> None:
    network = gated(name, torch.float32)
    kill(network, PATTERN)
    assert_same_function(network, compact(network), images_for(network, dtype=torch.float32))


def test_the_original_is_untouched_and_no_memory_is_shared() -> None:
    network = copy.deepcopy(gated("lenet5-caffe")).train()
    kill(network, PATTERN)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    gradients = {name: p.requires_grad for name, p in network.named_parameters()}
    small = compact(network)
    held = {t.untyped_storage().data_ptr() for t in network.state_dict().values()}
    assert not held & {t.untyped_storage().data_ptr() for t in small.state_dict().values()}
    for value in small.state_dict().values():
        value.fill_(float("nan")) if value.is_floating_point() else value.zero_()
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert network.training
    assert not small.training
    assert gradients == {name: p.requires_grad for name, p in network.named_parameters()}
    assert all(p.requires_grad for p in small.parameters())


def test_a_network_without_gates_comes_back_as_an_independent_copy() -> None:
    network = perturb(build("lenet5-caffe")).double()
    small = compact(network)
    assert parameters(small) == parameters(network) == 431_080
    assert_same_function(network, small, images_for(network))
    with torch.no_grad():
        small.get_parameter("fc2.bias").zero_()
    assert bool(network.get_parameter("fc2.bias").any())


def test_a_layer_that_would_lose_every_unit_keeps_the_strongest_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = gated("lenet5-caffe")
    kill(network, (1, {0: 1.0, 1: 1.0, 2: 0.2, 3: 1.0}))
    with caplog.at_level(logging.WARNING):
        small = compact(network)
    assert {r.args[0] for r in caplog.records if isinstance(r.args, tuple)} == {"gate1", "gate2", "gate4"}
    assert small.get_parameter("conv1.weight").shape[0] == 1
    assert_same_function(network, small, images_for(network))


def test_images_of_the_wrong_shape_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"LeNet.*\(2, 3, 28, 28\)"):
        compact(gated("lenet5-caffe"), torch.rand(2, 3, 28, 28, dtype=torch.float64))
    with pytest.raises(InputError, match="input_shape"):
        compact(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


# -- units leave a network that keeps its gates ---------------------------------------------------------------


def dead_units(network: nn.Module) -> dict[str, Tensor]:
    return {name: ~gate.alive() for name, gate in gates(network).items()}


@given(dead_patterns(), dead_patterns())
@settings(max_examples=8)
def test_a_shrunk_network_is_the_same_and_shrinks_again_and_compacts(
    first: tuple[int, dict[int, float]], second: tuple[int, dict[int, float]]
) -> None:
    network = copy.deepcopy(gated("lenet5-caffe"))
    kill(network, first)
    reference = copy.deepcopy(network)
    shrink(network, dead_units(network))
    assert_same_function(reference, network, images_for(network))
    kill(network, second)
    reference = copy.deepcopy(network)
    alive = {name: int(gate.alive().sum()) for name, gate in gates(network).items()}
    shrink(network, dead_units(network))
    for name, gate in gates(network).items():  # a unit also leaves when all that it feeds is dead
        assert 1 <= gate.units <= alive[name]
    assert [gate.original_units for gate in gates(network).values()] == [20, 50, 800, 500]
    assert_same_function(reference, network, images_for(network))
    small = compact(network)
    assert no_gate_left(small)
    assert_same_function(reference, small, images_for(network))


@pytest.mark.parametrize("name", ["lenet5-caffe", "vgg16"])
def test_a_step_of_training_is_the_same_for_what_stayed(name: str) -> None:
    """With the gates decided, dead units have no say: gradients, statistics and a step agree entry by entry."""
    network = copy.deepcopy(gated(name))
    kill(network, PATTERN)
    for module in network.modules():
        if isinstance(module, Dropout):
            module.probability = 0.0
    for gate in gates(network).values():
        gate.fixed = True
    small = copy.deepcopy(network)
    kept = shrink(small, dead_units(small))
    assert parameters(small) < parameters(network) / 2
    images = images_for(network, 4)
    for trained in (network, small):
        trained.train()
        loss = nn.functional.cross_entropy(trained(images), torch.tensor([0, 1, 2, 3]))
        loss.backward()
    wanted = dict(network.named_parameters())
    for path, parameter in small.named_parameters():
        gradient = wanted[path].grad
        assert (parameter.grad is None) == (gradient is None)
        if gradient is not None and parameter.grad is not None:
            assert gradient.shape == wanted[path].shape
            part = take(gradient, kept.get(path, []))
            assert part.shape == parameter.shape
            torch.testing.assert_close(parameter.grad, part, rtol=1e-8, atol=1e-12)
    state = network.state_dict()
    for path, value in small.state_dict().items():
        if not path.endswith("index"):
            torch.testing.assert_close(value, take(state[path], kept.get(path, [])), rtol=1e-10, atol=1e-12)


# -- saving ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["gated", "shrunk", "compact"])
@pytest.mark.parametrize("name", ["lenet5-caffe", "vgg16"])
def test_every_form_loads_again(name: str, form: str, tmp_path: object) -> None:
    network = copy.deepcopy(gated(name, torch.float32))
    kill(network, PATTERN)
    if form == "shrunk":
        shrink(network, dead_units(network))
    saved = compact(network) if form == "compact" else network
    again = load(save(saved, f"{tmp_path}/net"))
    images = images_for(network, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(again(images), saved(images))
    assert {n: g.original_units for n, g in gates(again).items()} == {
        n: g.original_units for n, g in gates(saved).items()
    }
    for path, module in saved.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d | Select):
            assert repr(again.get_submodule(path)) == repr(module)


def test_resizing_refuses_another_architecture() -> None:
    with pytest.raises(InputError, match="conv1"):
        resize(build("vgg16"), build("lenet5-caffe").state_dict())
    state = {"conv1.weight": torch.zeros(20, 25)}
    with pytest.raises(InputError, match=r"conv1\.weight.*\(20, 25\)"):
        resize(build("lenet5-caffe"), state)


@pytest.mark.parametrize("name", ["lenet5-caffe", "resnet18"])
def test_resizing_stays_on_the_networks_device(name: str) -> None:
    """A checkpoint is read on the CPU, whatever the network in training lies on."""
    small = copy.deepcopy(gated(name, torch.float32))
    kill(small, PATTERN)
    shrink(small, {path: ~gate.alive() for path, gate in gates(small).items()})
    for state in (small.state_dict(), compact(small).state_dict()):
        network = resize((insert_gates(build(name)) if "a_uc" in str(state.keys()) else build(name)).to("meta"), state)
        assert {value.device.type for value in (*network.parameters(), *network.buffers())} == {"meta"}

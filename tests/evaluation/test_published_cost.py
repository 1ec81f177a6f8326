"""The published accounting against hand computations and against rows of the published tables."""

import copy
import random

import pytest
import torch
from torch import nn

from anp_vs.errors import InputError
from anp_vs.evaluation.published_cost import (
    LENET_UNITS,
    VGG_UNITS,
    active_units,
    lenet_flops,
    lenet_memory,
    published_cost,
    vgg_flops,
    vgg_memory,
)
from anp_vs.networks import build
from anp_vs.networks.bayesian import make_bayesian
from anp_vs.pruning.compact import compact
from anp_vs.pruning.gate import gates
from anp_vs.pruning.insertion import insert_gates
from anp_vs.pruning.shrinking import shrink

DEAD = -9.0  # with b = 1, E[pi] = 1 / (1 + 1 / a) is about 1e-4


def pruned(name: str, kept: dict[str, int]) -> nn.Module:
    """A gated network whose gates keep their first so many units."""
    network = insert_gates(build(name)).eval()
    for path, gate in gates(network).items():
        with torch.no_grad():
            gate.a_uc.fill_(2.0)
            gate.a_uc[kept.get(path, gate.units) :] = DEAD
    return network


def test_full_lenet_by_hand() -> None:
    # conv: 2 n + 1 FLOPs an output of n inputs, bias and ReLU in it; dense the same; the logits have no ReLU.
    conv1, pool1 = (2 * 25 + 1) * 20 * 24**2, 4 * 20 * 12**2
    conv2, pool2 = (2 * 500 + 1) * 50 * 8**2, 4 * 50 * 4**2
    dense = (2 * 800 + 1) * 500 + 2 * 500 * 10
    assert lenet_flops(LENET_UNITS) == conv1 + pool1 + conv2 + pool2 + dense == 4_615_940
    assert lenet_memory(LENET_UNITS) == 14_900 + 57_000 + 400_500 + 5_010


def test_full_vgg_memory_by_hand() -> None:
    maps = [
        (32, 3),
        (32, 64),
        (16, 64),
        (16, 128),
        (8, 128),
        (8, 256),
        (8, 256),
        (4, 256),
        (4, 512),
        (4, 512),
    ]
    maps += [(2, 512)] * 3
    im2col = sum(9 * channels * side**2 for side, channels in maps)
    # All parameters but the convolutions' biases and the normalisation of the dense layer's outputs; that of
    # its inputs is counted in its place.
    weights = sum(p.numel() for p in build("vgg16").parameters()) - sum(VGG_UNITS[:13]) - 2 * 512 + 2 * 512
    assert vgg_memory(VGG_UNITS) == im2col + weights
    dense = 512 * 512 + 512 + 2 * 512 + 512 * 10 + 10
    assert vgg_memory(VGG_UNITS, repeat_dense=True) == im2col + weights + 12 * dense


def test_full_vgg_flops_are_twice_the_macs_plus_elementwise_work() -> None:
    from anp_vs.evaluation.cost import macs

    network = build("vgg16").eval()
    outputs = 64 * 32**2 * 2 + 128 * 16**2 * 2 + 256 * 8**2 * 3 + 512 * 4**2 * 3 + 512 * 2**2 * 3 + 512 + 10
    pooling = 64 * 32**2 + 128 * 16**2 + 256 * 8**2 + 512 * 4**2 + 512 * 2**2  # 4 a pooled output
    assert vgg_flops(VGG_UNITS) == 2 * macs(network, torch.zeros(1, 3, 32, 32)) + outputs + pooling


@pytest.mark.parametrize("name", ["lenet5-caffe", "vgg16"])
def test_an_ungated_network_is_the_whole(name: str) -> None:
    row = published_cost(build(name))
    assert row is not None
    assert (row.sparsity_percent, row.flops_reduction, row.memory_percent) == (0.0, 1.0, 100.0)
    assert sum(row.units) == {"lenet5-caffe": 1370, "vgg16": 5248}[name]


def test_weight_pruning_is_counted_by_zero_weights() -> None:
    network = build("lenet5-caffe")
    with torch.no_grad():
        for layer in (network.conv1, network.conv2, network.fc1, network.fc2):
            layer.weight.view(-1)[: layer.weight.numel() * 4 // 5] = 0.0
    row = published_cost(network)
    assert row is not None
    assert row.sparsity_percent == pytest.approx(80.0)
    assert (row.flops_reduction, row.memory_percent) == (1.0, 100.0)


def test_gated_lenet_by_hand() -> None:
    network = pruned("lenet5-caffe", {"gate1": 12, "gate2": 38, "gate3": 206, "gate4": 140})
    row = published_cost(network)
    assert row is not None
    assert row.units == (12, 38, 206, 140)
    assert row.sparsity_percent == pytest.approx(100 * (1 - 396 / 1370))
    flops = 51 * 12 * 576 + 48 * 144 + 601 * 38 * 64 + 152 * 16 + 413 * 140 + 280 * 10
    assert row.flops_reduction == pytest.approx(4_615_940 / flops)
    memory = 25 * 576 + 25 * 12 + 300 * 64 + 300 * 38 + 207 * 140 + 141 * 10
    assert row.memory_percent == pytest.approx(100 * memory / 477_410)


def test_the_last_convolution_of_vgg_counts_twice() -> None:
    row = published_cost(pruned("vgg16", {"features.gate13": 100, "gate14": 200}))
    assert row is not None
    assert row.units == (*VGG_UNITS[:12], 100, 100, 200)
    assert row.sparsity_percent == pytest.approx(100 * (412 + 412 + 312) / 5248)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        # Every flattened unit of the kept channels stays, so that gates and layer shapes agree.
        ("lenet5-caffe", {"gate1": 9, "gate2": 30, "gate3": 480, "gate4": 100}),
        ("vgg16", {"features.gate2": 40, "features.gate9": 100, "features.gate13": 60, "gate14": 70}),
    ],
)
def test_a_compact_network_is_counted_like_its_gated_one(name: str, kept: dict[str, int]) -> None:
    gated = pruned(name, kept)
    row = published_cost(gated, repeat_dense=True)
    assert row == published_cost(compact(gated), repeat_dense=True)
    shrunk = copy.deepcopy(gated)
    shrink(shrunk, {path: ~gate.alive() for path, gate in gates(gated).items()})
    assert sum(g.units for g in gates(shrunk).values()) < sum(g.units for g in gates(gated).values())
    assert row == published_cost(shrunk, repeat_dense=True)


def test_other_networks_have_no_published_columns() -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    assert active_units(other) is None
    assert published_cost(other) is None


@pytest.mark.parametrize("units", [(20, 50, 800), (20, 50, 800, 501), (0, 50, 800, 500)])
def test_impossible_widths_are_refused(units: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="active units"):
        lenet_flops(units)


def test_published_vgg_row_was_made_with_repeated_dense_layers() -> None:
    """Profiles with the published sparsity (76.53 %) and FLOPs (2.41x) give the published memory (12.27 %)
    with the slip, and more without it."""
    draw = random.Random(7)
    repeated, once = [], []
    while len(repeated) < 40:
        early, late = draw.uniform(0.5, 1.0), draw.uniform(0.02, 0.3)
        shares = [early * draw.uniform(0.7, 1.2) for _ in range(7)]
        shares += [late * draw.uniform(0.3, 2.0) for _ in range(8)]
        units = [max(1, min(u, round(u * s))) for u, s in zip(VGG_UNITS, shares, strict=True)]
        sparsity = 100 * (1 - sum(units) / 5248)
        if abs(sparsity - 76.53) > 0.5 or abs(vgg_flops(VGG_UNITS) / vgg_flops(units) - 2.41) > 0.05:
            continue
        repeated.append(100 * vgg_memory(units, 10, True) / vgg_memory(VGG_UNITS, 10, True))
        once.append(100 * vgg_memory(units) / vgg_memory(VGG_UNITS))
    assert min(repeated) < 12.27 < max(repeated)
    assert min(once) > 12.27


def test_a_bayesian_network_costs_twice_as_published() -> None:
    row = published_cost(make_bayesian(build("vgg16"), 0.1, -5.0))
    assert row is not None
    assert (row.sparsity_percent, row.flops_reduction, row.memory_percent) == (0.0, 0.5, 200.0)


@pytest.mark.parametrize(("name", "kept"), [("lenet5-caffe", 2), ("vgg16", 4)])
def test_gates_that_layers_share_count_as_their_compact_network_does(name: str, kept: int) -> None:
    network = insert_gates(build(name), residual="share").eval()
    for gate in gates(network).values():
        with torch.no_grad():
            gate.a_uc[: gate.units // kept] = DEAD
    assert published_cost(network) == published_cost(compact(network))
    found = published_cost(network)
    assert found is not None
    assert found.sparsity_percent > 20


def test_a_wider_network_has_no_published_cost() -> None:
    wide = build("lenet5-caffe")
    wide.conv1, wide.conv2 = nn.Conv2d(1, 32, 5), nn.Conv2d(32, 50, 5)
    assert active_units(wide) is None
    assert published_cost(wide) is None

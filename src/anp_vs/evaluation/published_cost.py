"""The cost columns as the published tables count them: sparsity, FLOPs reduction and memory.

Source: Madaan, Shin, Hwang (ICML 2020), tables 1 and 2, and the accounting of their released code, which is
reproduced here so that a row can be compared with the published one. What a network really costs is in
`anp_vs.evaluation.cost`.

A network is described by the number of active units of each gate of the published layout: LeNet-5-Caffe has
gates on conv1 (20), conv2 (50), the inputs of fc1 (800) and of fc2 (500), 1370 units; VGG-16 on its thirteen
convolutions, on the flattened inputs of fc1 (512) and on those of fc2 (512), 5248 units. The VGG-16 here
has one gate for the thirteenth convolution and the flattened inputs, which are the same axis; its units are
counted twice to keep the published denominator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from anp_vs.errors import InputError
from anp_vs.networks.bayesian import is_random
from anp_vs.networks.lenet import LeNet
from anp_vs.networks.vgg import POOL_AFTER, VGG16, WIDTHS
from anp_vs.pruning.compact import compact
from anp_vs.pruning.gate import Gate, gates

LENET_UNITS: tuple[int, ...] = (20, 50, 800, 500)
"""Units of LeNet-5-Caffe's four gates; sum 1370."""
VGG_UNITS = (*WIDTHS, 512, 512)
"""Units of VGG-16's fifteen gates; sum 5248."""
LENET_SLOTS: tuple[str, ...] = ("gate1", "gate2", "gate3", "gate4")
VGG_SLOTS = (*(f"features.gate{number}" for number in range(1, 14)), "features.gate13", "gate14")
"""Where the networks here have those gates."""
_CHANCE_PERCENT = 0.01  # a drawn weight is exactly zero now and then; pruning leaves far more


@dataclass(frozen=True)
class PublishedCost:
    """The cost columns of one row of the published tables.

    Attributes:
        sparsity_percent: 100 (1 - active units / units); for a network at full width, the percentage of its
            convolution and dense weights that are exactly zero, as the row of weight pruning (ADMM) has it.
        flops_reduction: FLOPs of the full network / FLOPs of this one, at least 1.
        memory_percent: 100 memory of this network / memory of the full one.
        units: active units of each gate.
    """

    sparsity_percent: float
    flops_reduction: float
    memory_percent: float
    units: tuple[int, ...]


def published_cost(network: nn.Module, *, repeat_dense: bool = False) -> PublishedCost | None:
    """The published columns for a LeNet-5-Caffe or VGG-16, gated, compact or full; None for another network.

    A Bayesian network costs twice its plain one, as published (a mean and a deviation for each weight). A
    gated network is counted by its gates' masks, each gate by itself; units that were removed while it was
    trained count as inactive. A compact network is counted by the shapes of its layers. There a unit is also
    gone if everything that reads it or feeds it is, so it can be a little smaller than its gates say.

    Args:
        network: any module.
        repeat_dense: count VGG-16's memory with the slip of the released code, which adds the two dense
            layers once for each of the 13 convolutions; the published memory column was made with it.
    """
    units = active_units(network)
    if units is None:
        return None
    if len(units) == len(LENET_UNITS):
        full: tuple[int, ...] = LENET_UNITS
        channels, classes = _lenet_ends(network)
        flops = lenet_flops(full, channels, classes) / lenet_flops(units, channels, classes)
        memory = lenet_memory(units, channels, classes) / lenet_memory(full, channels, classes)
    else:
        full = VGG_UNITS
        classes = cast(nn.Linear, network.fc2).out_features
        flops = vgg_flops(full, classes) / vgg_flops(units, classes)
        memory = vgg_memory(units, classes, repeat_dense) / vgg_memory(full, classes, repeat_dense)
    sparsity = 100 * (1 - sum(units) / sum(full))
    if units == full and not gates(network):
        zeros = zero_weights_percent(network)
        sparsity = zeros if zeros > _CHANCE_PERCENT else 0.0
    if is_random(network):  # each weight is a mean and a deviation
        flops, memory = flops / 2, 2 * memory
    return PublishedCost(sparsity, flops, 100 * memory, units)


def active_units(network: nn.Module) -> tuple[int, ...] | None:
    """Active units of each published gate (4 for LeNet-5-Caffe, 15 for VGG-16); None for another network, or a wider one."""
    if isinstance(network, LeNet | VGG16) and not gates(network).keys() <= {*LENET_SLOTS, *VGG_SLOTS}:
        network = compact(network)  # its gates are elsewhere, as where layers share them
    shapes: tuple[int, ...]
    if isinstance(network, LeNet):
        conv1, conv2, fc1, fc2 = network.conv1, network.conv2, network.fc1, network.fc2
        shapes = (conv1.out_channels, conv2.out_channels, fc1.in_features, fc2.in_features)
        slots, full = LENET_SLOTS, LENET_UNITS
    elif isinstance(network, VGG16):
        convolutions = [m for m in network.features if isinstance(m, nn.Conv2d)]
        shapes = (*(c.out_channels for c in convolutions), network.fc1.in_features, network.fc2.in_features)
        slots, full = VGG_SLOTS, VGG_UNITS
    else:
        return None
    if len(shapes) != len(full) or any(width > most for width, most in zip(shapes, full, strict=True)):
        return None
    modules = [network.get_submodule(slot) for slot in slots]
    return tuple(
        int(module.alive().sum()) if isinstance(module, Gate) else width
        for module, width in zip(modules, shapes, strict=True)
    )


@torch.no_grad()
def zero_weights_percent(network: nn.Module) -> float:
    """Percentage of convolution and dense weights (biases left out) that are exactly zero."""
    layers = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
    weights = [module.weight for module in network.modules() if isinstance(module, layers)]
    total = sum(w.numel() for w in weights)
    return 100 * sum(int((w == 0).sum()) for w in weights) / total if total else 0.0


def lenet_flops(units: Sequence[int], channels: int = 1, classes: int = 10) -> int:
    """FLOPs of LeNet-5-Caffe with these active units: (2n - 1) an output of n inputs, bias, ReLU, pooling."""
    conv1, conv2, flat, dense = _units(units, LENET_UNITS)
    return (
        _conv_flops(5, channels, conv1, 24)
        + _pool_flops(conv1, 12)
        + _conv_flops(5, conv1, conv2, 8)
        + _pool_flops(conv2, 4)
        + _dense_flops(flat, dense)
        + _dense_flops(dense, classes, activation=False)
    )


def lenet_memory(units: Sequence[int], channels: int = 1, classes: int = 10) -> int:
    """Elements of unfolded input maps (im2col), kernels, and dense weights with their biases."""
    conv1, conv2, flat, dense = _units(units, LENET_UNITS)
    return (
        _conv_memory(5, channels, conv1, 24)
        + _conv_memory(5, conv1, conv2, 8)
        + (flat + 1) * dense
        + (dense + 1) * classes
    )


def vgg_flops(units: Sequence[int], classes: int = 10) -> int:
    """FLOPs of VGG-16 with these active units, counted as in `lenet_flops`; batch normalisation is free.

    The released code counts an activation behind the logits here, which costs `classes` FLOPs.
    """
    units = _units(units, VGG_UNITS)
    total, width, side = 0, 3, 32
    for i, out in enumerate(units[:13], 1):
        total += _conv_flops(3, width, out, side)
        if i in POOL_AFTER:
            side //= 2
            total += _pool_flops(out, side)
        width = out
    return total + _dense_flops(units[13], units[14]) + _dense_flops(units[14], classes)


def vgg_memory(units: Sequence[int], classes: int = 10, repeat_dense: bool = False) -> int:
    """Elements of unfolded input maps, kernels, normalisation (2 a channel), dense weights and biases.

    Args:
        units: active units of the fifteen gates.
        classes: number of logits.
        repeat_dense: add the dense layers 13 times, as the released code does.
    """
    units = _units(units, VGG_UNITS)
    total, width, side = 0, 3, 32
    for i, out in enumerate(units[:13], 1):
        total += _conv_memory(3, width, out, side) + 2 * out
        if i in POOL_AFTER:
            side //= 2
        width = out
    flat, hidden = units[13:]
    dense = (flat + 1) * hidden + 2 * flat + (hidden + 1) * classes
    return total + dense * (13 if repeat_dense else 1)


def _units(units: Sequence[int], full: Sequence[int]) -> tuple[int, ...]:
    if len(units) != len(full) or any(not 1 <= u <= f for u, f in zip(units, full, strict=True)):
        raise InputError(
            f"the active units are {tuple(units)}; give {len(full)} numbers, each from 1 to its full width: "
            f"{tuple(full)}."
        )
    return tuple(units)


def _lenet_ends(network: nn.Module) -> tuple[int, int]:
    return cast(nn.Conv2d, network.conv1).in_channels, cast(nn.Linear, network.fc2).out_features


def _conv_flops(kernel: int, inputs: int, outputs: int, side: int) -> int:
    n = kernel * kernel * inputs
    return (2 * n - 1 + 2) * outputs * side * side  # + bias + ReLU


def _pool_flops(channels: int, side: int) -> int:
    return 4 * channels * side * side


def _dense_flops(inputs: int, outputs: int, *, activation: bool = True) -> int:
    return (2 * inputs - 1 + 1 + int(activation)) * outputs


def _conv_memory(kernel: int, inputs: int, outputs: int, side: int) -> int:
    return kernel * kernel * inputs * (side * side + outputs)

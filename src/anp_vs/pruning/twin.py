"""The compact twin: the network an attack sees during training, with nothing in it that costs time.

In evaluation a gate is a constant and batch normalisation is affine. So before the attack's steps the twin is
built once: pruned channels are gone, gates and batch normalisation are folded into weights, pooling goes before
ReLU (they commute), and no parameter asks for a gradient. It computes the gated network's function, and its
cost falls with the sparsity.
"""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import fusion

from anp_vs.networks.layers import Dropout
from anp_vs.pruning.compact import Compactor
from anp_vs.pruning.pixel_conv import PixelConv2d, suits
from anp_vs.pruning.points import Point
from anp_vs.pruning.precision import TYPES, Lowered, Precision, on_pixels
from anp_vs.pruning.slicing import replace


class Twin:
    """Builds compact twins of one network, tracing it only once.

    Args:
        network: with or without gates; its structure must not change (make a new `Twin` after `shrink`).
        example: images N x C x H x W to trace with.
        channels_last: memory layout of the twin's weights; convolutions on a CPU prefer it.
        precision: of all that comes after the first layer, see `anp_vs.pruning.precision`.
    """

    def __init__(
        self, network: nn.Module, example: Tensor, *, channels_last: bool = True, precision: Precision = "float32"
    ) -> None:
        self.compactor = Compactor(network, example)
        self.precision = precision
        self.channels_last = channels_last
        self.on_cpu = example.device.type == "cpu"
        points = self.compactor.graph.points
        self.seen, self.first = on_pixels(points)
        self.normalised = [(p.path, u.path) for p in points if (u := _normalisation_after(p)) is not None]
        calls = Counter(p.path for p in points)
        pooled = [(p.path, u.path) for p in points if (u := _pooling_after(p)) is not None]
        self.pooled = [(relu, pool) for relu, pool in pooled if calls[relu] == calls[pool] == 1]
        # A ReLU may overwrite its input only if nobody else reads it, wherever the module is called.
        relus = [p for p in points if isinstance(p.module, nn.ReLU)]
        self.in_place = {p.path for p in relus} - {p.path for p in relus if not _overwritable(p.inputs[0])}

    @torch.no_grad()
    def build(self, *, own_kernels: bool = True) -> nn.Module:
        """The twin for the present weights: evaluation mode, parameters without gradients.

        Args:
            own_kernels: use `PixelConv2d` where it is faster; a compiler is better off without.
        """
        twin = self.compactor.build()
        for module in twin.modules():  # what is shared with the network in training must not be frozen there
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(parameter.detach(), requires_grad=False)
        for layer, norm in self.normalised:
            replace(twin, layer, _fused(twin.get_submodule(layer), twin.get_submodule(norm)))
            replace(twin, norm, nn.Identity())
        for relu, pool in self.pooled:
            if all(isinstance(m, nn.Identity) for m in self._between(twin, relu, pool)):
                pooling = twin.get_submodule(pool)
                replace(twin, pool, nn.ReLU(inplace=True))
                replace(twin, relu, pooling)
        for path in self.in_place:
            module = twin.get_submodule(path)
            if isinstance(module, nn.ReLU):
                module.inplace = True
        twin.requires_grad_(False)
        if self.channels_last:
            for module in twin.modules():
                weight = module._parameters.get("weight")
                if weight is not None and weight.dim() == 4:
                    laid_out = weight.contiguous(memory_format=torch.channels_last)
                    module._parameters["weight"] = nn.Parameter(laid_out, requires_grad=False)
        if self.on_cpu and own_kernels:  # a GPU's kernels need no help with the first layer
            for path, module in list(twin.named_modules()):
                if type(module) is nn.Conv2d and suits(module):  # another class may compute its weight
                    replace(twin, path, PixelConv2d(module))
        return twin if self.precision == "float32" else Lowered(twin, self.seen, self.first, TYPES[self.precision])

    def _between(self, twin: nn.Module, relu: str, pool: str) -> list[nn.Module]:
        """What the built twin has between an activation and the pooling that follows it."""
        by_path = {p.path: p for p in self.compactor.graph.points if p.module is not None}
        modules, point = [], by_path[relu].users[0]
        while point.path != pool:
            module = twin.get_submodule(point.path)
            modules.append(nn.Identity() if isinstance(module, Dropout | nn.Dropout) else module)
            point = point.users[0]
        return modules


def _normalisation_after(point: Point) -> Point | None:
    """The batch normalisation that alone reads a convolution's or dense layer's output."""
    if point.rule not in ("mix", "grouped") or len(point.users) != 1:
        return None
    user = point.users[0]
    statistics = user.module._buffers.get("running_mean") if user.module is not None else None
    called = user.node.op == "call_module"  # and not only its statistics used
    return user if called and user.rule == "batchnorm" and statistics is not None else None


def _fused(layer: Any, norm: Any) -> nn.Module:
    """One layer that computes a convolution or dense layer and the normalisation behind it."""
    dense = isinstance(layer, nn.Linear)
    made: nn.Module = (fusion.fuse_linear_bn_eval if dense else fusion.fuse_conv_bn_eval)(layer, norm)
    return made


def _overwritable(point: Point) -> bool:
    """Whether a tensor has one reader, no other name, and no part in its own gradient."""
    while len(point.users) == 1:
        in_place = point.node.target in (operator.iadd, "add_")
        same_memory = isinstance(point.module, nn.Identity | nn.Dropout | Dropout) or point.rule in (
            "gate", "flatten", "reshape", "permute",
        )  # fmt: skip
        if not same_memory and not in_place:
            return point.rule in ("mix", "grouped", "batchnorm", "add")
        point = point.inputs[0]
    return False


def _pooling_after(point: Point) -> Point | None:
    """The max-pooling that alone reads a ReLU's output, through gates and dropout only."""
    if not isinstance(point.module, nn.ReLU):
        return None
    if point.module.inplace and not _overwritable(point.inputs[0]):  # whoever else reads its input sees its output
        return None
    current = point
    while len(current.users) == 1:
        current = current.users[0]
        if isinstance(current.module, nn.MaxPool2d) and not current.module.return_indices:
            return current
        if current.rule != "gate" and not isinstance(current.module, nn.Identity | Dropout | nn.Dropout):
            return None
    return None

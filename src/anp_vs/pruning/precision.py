"""Training in bfloat16 where the pixels stay float32.

bfloat16 keeps 8 bits: it rounds bright pixels to 1/256, most of a perturbation of 8/255. So everything up to
the first layer that mixes values runs in float32, and what follows in the lower precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anp_vs.pruning.points import Point

Precision = Literal["float32", "bfloat16"]
TYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def on_pixels(points: Sequence[Point]) -> tuple[set[str], set[str]]:
    """Paths of the modules that see pixels, and among them of the first layers that mix them.

    Args:
        points: of a traced network, in the order of its forward pass.
    """
    before: dict[Point, bool] = {}
    owners: dict[Point, set[str]] = {}  # of what is computed from weights alone: the modules that hold those
    seen, first = set(), set()
    for point in points:
        if point.node.op == "get_attr":
            owners[point] = {str(point.node.target).rpartition(".")[0]}
        elif point.inputs and all(i in owners for i in point.inputs):
            owners[point] = set().union(*(owners[i] for i in point.inputs))
        pixels = all(before[i] for i in point.inputs)
        mixes, at = point.rule in ("mix", "grouped"), {point.path}
        if point.rule == "whole" and point not in owners:  # not understood: with weights, it may mix
            if point.module is None:
                at = set().union(*(owners.get(i, set()) for i in point.inputs))
                mixes = bool(at)
            else:
                mixes = any(True for _ in point.module.parameters())
        before[point] = pixels and not mixes
        if pixels and (mixes or point.module is not None):
            seen |= at
            if mixes:
                first |= at
    return seen, first


class _To(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, features: Tensor) -> Tensor:
        return features.to(self.dtype)


class Lowered(nn.Module):
    """A network of which all but what sees pixels computes in a lower precision; the logits are float32.

    Args:
        network: float32, in evaluation mode; its parameters are converted in place.
        seen: paths of the modules that see pixels, and of
        first: the layers among them behind which the precision changes.
        dtype: the lower precision.
    """

    def __init__(self, network: nn.Module, seen: set[str], first: set[str], dtype: torch.dtype) -> None:
        super().__init__()
        kept = {below for path in seen for below in network.get_submodule(path).modules()}
        for module in network.modules():
            if module not in kept:
                module._apply(lambda t: t.to(dtype) if t.is_floating_point() else t, recurse=False)  # type: ignore[no-untyped-call]
        for path in first - {""}:  # a network that holds such weights itself stays float32 whole
            parent, _, leaf = path.rpartition(".")
            setattr(network.get_submodule(parent), leaf, nn.Sequential(network.get_submodule(path), _To(dtype)))
        self.network, self.entry = network, _To(torch.float32 if first else dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Images N x C x H x W in [0, 1], float32, to logits N x K, float32."""
        logits: Tensor = self.network(self.entry(images)).float()
        return logits


@contextmanager
def lowered(network: nn.Module, first: set[str], precision: Precision) -> Iterator[None]:
    """While open, a network in training computes in this precision; first layers and logits are float32."""
    if precision == "float32":
        yield
        return
    layers = [network.get_submodule(path) for path in first]
    device = next(network.parameters()).device.type
    logits = network.register_forward_hook(lambda module, inputs, output: output.float())
    with torch.autocast(device, TYPES[precision]):
        for layer in layers:
            layer.forward = _exempt(layer.forward, device)
        try:
            yield
        finally:
            logits.remove()
            for layer in layers:
                del layer.forward  # the class's own shows again


def _exempt(forward: Callable[..., Any], device: str) -> Callable[..., Any]:
    def call(images: Tensor) -> Any:
        with torch.autocast(device, enabled=False):
            return forward(images.float())

    return call

"""Interval bounds: what the tensors of a network can be at most and at least, for all images of a box at once.

Source: Gowal et al. 2018 (arXiv 1810.12715). Every tensor is enclosed by a lower and an upper bound, layer by
layer. The bounds get wider with each layer.
"""

from __future__ import annotations

import operator
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from anp_vs.attacks import geometry
from anp_vs.errors import InputError
from anp_vs.networks.copying import copied
from anp_vs.networks.layers import Dropout, Normalize
from anp_vs.pruning.gate import Gate
from anp_vs.pruning.slicing import Select
from anp_vs.pruning.tracer import layers_of

# f(x) <= f(y) where x <= y, value by value: the bounds pass through as they are.
_RISING = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.ELU, nn.Softplus, nn.MaxPool2d,
    nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Identity, nn.Dropout, Dropout,
    Normalize, Gate, Select,
)  # fmt: skip
_RISING_FUNCTIONS = {
    F.relu, torch.relu, torch.flatten, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, torch.sigmoid,
    torch.tanh, torch.cat, torch.mean, "relu", "flatten", "mean", "view", "reshape", "size", operator.getitem, getattr,
}  # fmt: skip
_SUMS = {operator.add, operator.iadd, torch.add, "add"}


class Bounds(NamedTuple):
    """Two tensors of one shape that enclose a third."""

    lower: Tensor
    upper: Tensor


def interval_bounds(network: nn.Module, images: Tensor, eps: float) -> Bounds:
    """Bounds of the logits over all images of [0, 1] within eps (inf norm), in double precision.

    Args:
        network: built of convolutions, dense layers, batch normalisation, pooling and rising activations; not
            changed.
        images: N x C x H x W in [0, 1].
        eps: radius in pixel units, >= 0.

    Returns:
        Lower and upper logits, float64, N x K.

    Raises:
        InputError: an operation whose bounds are not known here, or images outside [0, 1].
    """
    return propagate(network, images, eps).logits


class Propagation(NamedTuple):
    """Bounds of the logits, of what each convolution and dense layer reads (by path), and the layer that gives the logits."""

    logits: Bounds
    read: dict[str, Bounds]
    last: tuple[nn.Linear, Bounds] | None


@torch.no_grad()
def propagate(network: nn.Module, images: Tensor, eps: float) -> Propagation:
    """The bounds of `interval_bounds`, with those on the way."""
    geometry.check_images(images)
    geometry.check_budget(eps, "inf")
    exact = copied(network).double().eval()
    images = images.double()
    interpreter = _Intervals(layers_of(exact))
    logits = interpreter.run(Bounds((images - eps).clamp(0, 1), (images + eps).clamp(0, 1)))
    last = None if interpreter.end not in interpreter.read else exact.get_submodule(interpreter.end)
    own = (last, interpreter.read[interpreter.end]) if isinstance(last, nn.Linear) else None
    return Propagation(logits, interpreter.read, own)


def _rises(module: nn.Module) -> bool:
    """Whether a layer of a rising kind does with its own numbers."""
    falls = min(getattr(module, "negative_slope", 0.0), getattr(module, "alpha", 0.0)) < 0
    return not falls and not getattr(module, "return_indices", False)


class _Intervals(fx.Interpreter):
    """Runs a traced network on bounds instead of tensors."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.read: dict[str, Bounds] = {}
        result = next(node for node in traced.graph.nodes if node.op == "output").args[0]
        self.end = str(result.target) if isinstance(result, fx.Node) and result.op == "call_module" else ""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        inputs = cast(Bounds, args[0])
        if isinstance(module, nn.Linear | nn.Conv2d):
            self.read[str(target)] = inputs
            return _affine(module, inputs)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:  # else of the batch
            centre, radius = (inputs.lower + inputs.upper) / 2, (inputs.upper - inputs.lower) / 2
            moved = module(centre)
            spread = (module(centre + radius) - moved).abs()
            return Bounds(moved - spread, moved + spread)
        if isinstance(module, _RISING) and _rises(module):
            return Bounds(module(inputs.lower), module(inputs.upper))
        raise self._unknown(type(module).__name__)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._call(target, super().call_function, args, kwargs)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._call(target, super().call_method, args, kwargs)

    def _call(self, target: Any, plain: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaf = {"is_leaf": lambda value: isinstance(value, Bounds)}
        if not any(isinstance(value, Bounds) for value in tree_leaves((args, kwargs), **leaf)):
            return plain(target, args, kwargs)
        if target not in _RISING_FUNCTIONS and (target not in _SUMS or "alpha" in kwargs):
            raise self._unknown(str(getattr(target, "__name__", target)))
        sides = []
        for side in (0, 1):
            own, named = tree_map(partial(_side, side), (args, kwargs), **leaf)
            sides.append(plain(target, own, named))
        return Bounds(*sides) if isinstance(sides[0], Tensor) else sides[0]

    def _unknown(self, name: str) -> InputError:
        return InputError(
            f"interval bounds through {name} are not known here; the network must be built of convolutions, "
            f"dense layers, batch normalisation, pooling and rising activations."
        )


def _side(side: int, value: Any) -> Any:
    return value[side] if isinstance(value, Bounds) else value


def _affine(module: nn.Linear | nn.Conv2d, inputs: Bounds) -> Bounds:
    centre, radius = (inputs.lower + inputs.upper) / 2, (inputs.upper - inputs.lower) / 2
    moved = module(centre)
    if isinstance(module, nn.Linear):
        spread = F.linear(radius, module.weight.abs())
    else:
        spread = module._conv_forward(radius, module.weight.abs(), None)
    return Bounds(moved - spread, moved + spread)

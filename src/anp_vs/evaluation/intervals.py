"""Interval bounds: classifications that no image of the inf-norm ball can change, proven.

Source: Gowal et al. 2018 (arXiv 1810.12715). Every tensor is enclosed by a lower and an upper bound, layer by
layer. The bounds get wider with each layer, so they prove something for small networks, small eps, and
networks trained for it; where nothing is proven nothing is said. Tighter linear bounds come from auto_LiRPA
where a version that works with this PyTorch is installed.
"""

from __future__ import annotations

import copy
import importlib
import operator
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from anp_vs.attacks import geometry
from anp_vs.errors import InputError
from anp_vs.evaluation.tracing import trace
from anp_vs.networks.layers import Dropout, Normalize
from anp_vs.pruning.gate import Gate
from anp_vs.pruning.slicing import Select

Method = Literal["interval", "crown"]

# f(x) <= f(y) where x <= y, value by value: the bounds pass through as they are.
_RISING = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.ELU, nn.Softplus, nn.MaxPool2d,
    nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Identity, nn.Dropout, Dropout,
    Normalize, Gate, Select,
)  # fmt: skip
_RISING_FUNCTIONS = {
    F.relu, torch.relu, torch.flatten, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, torch.sigmoid,
    torch.tanh, "relu", "flatten", "view", "reshape", "size", operator.getitem, getattr,
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
    return _propagate(network, images, eps).logits


@torch.no_grad()
def certified(network: nn.Module, images: Tensor, labels: Tensor, eps: float, *, method: Method = "interval") -> Tensor:
    """For which images no image within eps (inf norm) is classified otherwise than labelled, as a proof.

    Args:
        network: see `interval_bounds`; for a gated network its compact form is faster.
        images: float, N x C x H x W in [0, 1].
        labels: int64, N.
        eps: radius in pixel units, >= 0.
        method: `interval`, or `crown` (needs auto_LiRPA): tighter and slower.

    Returns:
        bool, N. False means that nothing was proven.

    Raises:
        InputError: see `interval_bounds`; or auto_LiRPA is asked for and not there.
    """
    geometry.check_images(images, labels)
    if method == "crown":
        return _crown(network, images, labels, eps)
    if method != "interval":
        raise InputError(f"method is {method!r}; choose interval or crown.")
    found = _propagate(network, images, eps)
    classes = found.logits.lower.shape[1]
    if found.last is None:
        own = found.logits.lower.gather(1, labels[:, None])
        rest = found.logits.upper.scatter(1, labels[:, None], -torch.inf)
        return (own > rest).all(dim=1)
    # z_y - z_j as one dense layer: tighter than the difference of two bounds.
    layer, inputs = found.last
    weight = layer.weight[labels][:, None] - layer.weight[None]  # N x K x inputs
    centre, radius = (inputs.lower + inputs.upper) / 2, (inputs.upper - inputs.lower) / 2
    least = (weight @ centre[:, :, None] - weight.abs() @ radius[:, :, None]).squeeze(2)
    if layer.bias is not None:
        least = least + layer.bias[labels][:, None] - layer.bias
    other = torch.arange(classes, device=labels.device) != labels[:, None]
    return ((least > 0) | ~other).all(dim=1)


class _Propagation(NamedTuple):
    logits: Bounds
    last: tuple[nn.Linear, Bounds] | None


@torch.no_grad()
def _propagate(network: nn.Module, images: Tensor, eps: float) -> _Propagation:
    geometry.check_images(images)
    geometry.check_budget(eps, "inf")
    exact = copy.deepcopy(network).double().eval()
    images = images.double()
    interpreter = _Intervals(trace(exact))
    logits = interpreter.run(Bounds((images - eps).clamp(0, 1), (images + eps).clamp(0, 1)))
    return _Propagation(logits, interpreter.last)


class _Intervals(fx.Interpreter):
    """Runs a traced network on bounds instead of tensors."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.last: tuple[nn.Linear, Bounds] | None = None
        result = next(node for node in traced.graph.nodes if node.op == "output").args[0]
        self._end = str(result.target) if isinstance(result, fx.Node) and result.op == "call_module" else None

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        inputs = cast(Bounds, args[0])
        if isinstance(module, nn.Linear) and target == self._end:
            self.last = (module, inputs)
        if isinstance(module, nn.Linear | nn.Conv2d):
            return _affine(module, inputs)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            centre, radius = (inputs.lower + inputs.upper) / 2, (inputs.upper - inputs.lower) / 2
            moved = module(centre)
            spread = (module(centre + radius) - moved).abs()
            return Bounds(moved - spread, moved + spread)
        if isinstance(module, _RISING):
            return Bounds(module(inputs.lower), module(inputs.upper))
        raise self._unknown(type(module).__name__)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._call(target, super().call_function, args, kwargs)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._call(target, super().call_method, args, kwargs)

    def _call(self, target: Any, plain: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not any(isinstance(a, Bounds) for a in (*args, *kwargs.values())):
            return plain(target, args, kwargs)
        if target not in _RISING_FUNCTIONS and (target not in _SUMS or "alpha" in kwargs):
            raise self._unknown(str(getattr(target, "__name__", target)))
        sides = []
        for side in (0, 1):
            own = [a[side] if isinstance(a, Bounds) else a for a in args]
            named = {k: a[side] if isinstance(a, Bounds) else a for k, a in kwargs.items()}
            sides.append(plain(target, tuple(own), named))
        return Bounds(*sides) if isinstance(sides[0], Tensor) else sides[0]

    def _unknown(self, name: str) -> InputError:
        return InputError(
            f"interval bounds through {name} are not known here; the network must be built of convolutions, "
            f"dense layers, batch normalisation, pooling and rising activations."
        )


def _affine(module: nn.Linear | nn.Conv2d, inputs: Bounds) -> Bounds:
    centre, radius = (inputs.lower + inputs.upper) / 2, (inputs.upper - inputs.lower) / 2
    moved = module(centre)
    if isinstance(module, nn.Linear):
        spread = F.linear(radius, module.weight.abs())
    else:
        spread = module._conv_forward(radius, module.weight.abs(), None)
    return Bounds(moved - spread, moved + spread)


def _crown(network: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """CROWN bounds of z_y - z_j from auto_LiRPA (Xu et al. 2020, arXiv 2002.12920)."""
    try:
        lirpa = importlib.import_module("auto_LiRPA")
    except ImportError as error:
        raise InputError(
            f"auto_LiRPA, which the method 'crown' uses, cannot be imported here ({error}). Install a "
            f"version that supports PyTorch {torch.__version__}, or use the method 'interval'."
        ) from error
    plain = copy.deepcopy(network).float().eval()
    images = images.float()
    with torch.no_grad():
        classes = plain(images[:1]).shape[1]
    one_hot = torch.eye(classes, device=images.device)
    differences = one_hot[labels][:, None] - one_hot  # N x K x K; the row of the label itself is zero
    lower, upper = (images - eps).clamp(0, 1), (images + eps).clamp(0, 1)
    ball = lirpa.PerturbationLpNorm(norm=float("inf"), eps=eps, x_L=lower, x_U=upper)
    bounded = lirpa.BoundedModule(plain, images)
    least, _ = bounded.compute_bounds(x=(lirpa.BoundedTensor(images, ball),), C=differences, method="CROWN")
    return cast(Tensor, ((least > 0) | (differences == 0).all(dim=2)).all(dim=1))

"""Which channels of a network must stay when its gates prune: a fixpoint over the traced graph.

Every tensor of the traced network has one *channel axis*. For each tensor two facts are kept, one flag a channel:

- `zero`: the channel is exactly zero in evaluation, for every image (found forwards from the gates);
- `kept`: the channel must exist in the small network (found backwards from the logits).

A convolution or dense layer *mixes* channels: it reads every channel that is not zero, and its own outputs are
free to go. An elementwise operation *couples* its input and output: both keep the same channels. An addition
couples both summands. A gate ends the chain: of its input it needs the units that are alive. Whatever is not
understood keeps everything, so an unknown operation costs size, never correctness.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from anp_vs.errors import InputError
from anp_vs.networks.layers import Dropout, Normalize
from anp_vs.pruning.gate import Gate

Channels = Tensor
"""One bool a channel."""

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d

# f(s x) = s f(x) for s > 0, channel by channel: a gate's E[pi] may pass to the next layer's weights.
HOMOGENEOUS = (
    nn.Identity, nn.ReLU, nn.LeakyReLU, nn.Dropout, nn.Dropout2d, Dropout, nn.Flatten,
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, nn.Upsample,
)  # fmt: skip
# f(0) = 0, channel by channel.
ZERO_AT_ZERO = (*HOMOGENEOUS, nn.PReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.ReLU6, nn.Tanh, nn.ELU, nn.CELU, nn.SELU,
                nn.Mish, nn.Softsign, nn.Hardtanh)  # fmt: skip
# Channel by channel, but not zero at zero.
CHANNELWISE = (*ZERO_AT_ZERO, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, Normalize)

HOMOGENEOUS_FUNCTIONS = {
    functional.relu, torch.relu, functional.leaky_relu, functional.max_pool2d, functional.avg_pool2d,
    functional.adaptive_avg_pool2d, functional.dropout, torch.flatten, functional.interpolate,
    "relu", "relu_", "contiguous", "flatten", "mean", torch.mean, "clone", torch.max_pool2d,
}  # fmt: skip
ZERO_AT_ZERO_FUNCTIONS = {*HOMOGENEOUS_FUNCTIONS, functional.gelu, functional.silu, functional.hardswish,
                          functional.relu6, torch.tanh, functional.mish, "tanh"}  # fmt: skip
CHANNELWISE_FUNCTIONS = {
    *ZERO_AT_ZERO_FUNCTIONS,
    torch.sigmoid,
    functional.sigmoid,
    functional.hardsigmoid,
    "sigmoid",
}
ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_", operator.sub, torch.sub, "sub"}
PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
RESHAPES = {"view", "reshape", "flatten", torch.flatten, torch.reshape}


@dataclass(eq=False)
class Point:
    """One tensor of the traced network: a node of the graph, its channel axis, and what is known of it."""

    node: fx.Node
    module: nn.Module | None
    shape: tuple[int, ...]
    inputs: list[Point] = field(default_factory=list)
    users: list[Point] = field(default_factory=list)
    axis: int = 1
    rule: str = "whole"

    @property
    def channels(self) -> int:
        """Channels along the axis."""
        return self.shape[self.axis] if len(self.shape) > self.axis else 1

    @property
    def path(self) -> str:
        """Module path, or the name of the operation."""
        return str(self.node.target) if self.module is not None else self.node.name


@dataclass(frozen=True)
class Flow:
    """For every tensor: which channels are zero in evaluation, and which must exist."""

    zero: dict[Point, Channels]
    kept: dict[Point, Channels]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Gate | Normalize | Dropout) or super().is_leaf_module(m, module_qualified_name)


class Graph:
    """The traced network, with one rule for each operation.

    Args:
        network: any module that takes one batch of images.
        example: images the network accepts, N x C x H x W; two are enough.

    Raises:
        InputError: the network cannot be traced or does not accept the example.
    """

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        tracer = _Tracer()
        training = [(module, module.training) for module in network.modules()]
        network.eval()
        try:
            traced = fx.GraphModule(network, tracer.trace(network))
            shapes = _Shapes(traced)
            with torch.no_grad():
                shapes.run(example)
        except Exception as error:
            raise InputError(
                f"{type(network).__name__} could not be traced with an example of shape {tuple(example.shape)}: "
                f"{error}. Pruning needs a forward pass without branches on tensor values; move such a branch into "
                f"a module of its own, or give an example of the right shape."
            ) from error
        finally:
            for module, mode in training:
                module.training = mode
        self.points: list[Point] = []
        by_node: dict[fx.Node, Point] = {}
        calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
        for node in traced.graph.nodes:
            if node not in shapes.found and node.op != "output":
                continue  # not a tensor (a size, a tuple): its users keep everything
            called = network.get_submodule(str(node.target)) if node.op == "call_module" else None
            point = Point(node, called, shapes.found.get(node, ()))
            point.inputs = [by_node[n] for n in node.all_input_nodes if n in by_node]
            for source in point.inputs:
                source.users.append(point)
            by_node[node] = point
            self.points.append(point)
            shared = calls[node.target] > 1 and called is not None and any(True for _ in called.parameters())
            complete = len(point.inputs) == len(node.all_input_nodes)
            point.rule = "whole" if shared or not complete else _rule(point)
            point.axis = _axis(point)

    def flow(self, alive: dict[Gate, Channels]) -> Flow:
        """Propagate which channels are zero (forwards) and which must exist (backwards, to the fixpoint).

        Args:
            alive: for each gate the units that are not pruned; a gate that is missing prunes nothing.
        """
        zero: dict[Point, Channels] = {}
        for point in self.points:
            zero[point] = _zero(point, [zero[source] for source in point.inputs], alive)
        kept = {point: torch.zeros(point.channels, dtype=torch.bool) for point in self.points}
        changed = True
        while changed:
            changed = False
            for point in reversed(self.points):
                changed |= _keep(point, kept, zero)
        return Flow(zero, kept)


class _Shapes(fx.Interpreter):
    """Runs the traced network once and notes the shape of every tensor."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.found: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = tuple(result.shape)
        return result


def _rule(point: Point) -> str:
    """The name of the operation's rule: how its input's channels and its output's belong together."""
    node, module = point.node, point.module
    if node.op in ("placeholder", "get_attr", "output"):
        return "whole"
    sources = point.inputs
    if module is not None:
        return _module_rule(point, module)
    target = node.target
    if target in ADDITIONS or target in PRODUCTS:
        same = all(source.channels == point.channels and source.axis == sources[0].axis for source in sources)
        name = "add" if target in ADDITIONS else "mul"
        return name if same and len(point.shape) == len(sources[0].shape) else "whole"
    if target in (torch.cat, torch.concat):
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        axis = sources[0].axis
        ok = isinstance(dim, int) and dim % len(point.shape) == axis and all(s.axis == axis for s in sources)
        return "cat" if ok and len(node.args[0]) == len(sources) else "whole"  # type: ignore[arg-type]
    if len(sources) != 1:
        return "whole"
    source = sources[0]
    if target in ("permute", "transpose", torch.permute, torch.transpose):
        return "permute"
    if target in RESHAPES:
        spatial = _product(source.shape[2:])
        flattened = len(point.shape) == 2 and source.axis == 1 and point.shape[1] == source.shape[1] * spatial
        return "flatten" if flattened else "whole"
    same = len(point.shape) > source.axis and point.shape[source.axis] == source.channels
    if target in CHANNELWISE_FUNCTIONS and same:
        return "channelwise"
    return "whole"


def _module_rule(point: Point, module: nn.Module) -> str:
    source = point.inputs[0] if len(point.inputs) == 1 else None
    if source is None:
        return "whole"
    if isinstance(module, Gate):
        return "gate" if module.dim % len(point.shape) == source.axis else "whole"
    if isinstance(module, nn.Linear):
        return "mix" if source.axis == len(source.shape) - 1 else "whole"
    if isinstance(module, Convolution):
        if source.axis != 1:
            return "whole"
        if module.groups == 1:
            return "mix"
        return "depthwise" if module.groups == module.in_channels == module.out_channels else "whole"
    if isinstance(module, BatchNorm):
        return "batchnorm" if source.axis == 1 else "whole"
    if isinstance(module, nn.Flatten):
        flattened = len(point.shape) == 2 and source.axis == 1
        return "flatten" if flattened else "whole"
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return "whole"
    return "channelwise" if isinstance(module, CHANNELWISE) else "whole"


def _axis(point: Point) -> int:
    source = point.inputs[0] if point.inputs else None
    if point.rule == "mix" and isinstance(point.module, nn.Linear):
        return len(point.shape) - 1
    if point.rule == "permute" and source is not None:
        moved = torch.empty(source.shape, device="meta")
        marker = moved.as_strided(source.shape, [int(i == source.axis) for i in range(len(source.shape))])
        args = point.node.args[1:]
        target = point.node.target
        move: Callable[..., Tensor] = getattr(torch.Tensor, target) if isinstance(target, str) else target
        return move(marker, *args, **point.node.kwargs).stride().index(1)
    if point.rule in ("channelwise", "add", "mul", "gate", "cat") and source is not None:
        return source.axis
    return 1


def _zero(point: Point, sources: list[Channels], alive: dict[Gate, Channels]) -> Channels:
    none = torch.zeros(point.channels, dtype=torch.bool)
    if point.rule == "gate" and isinstance(point.module, Gate):
        gate = point.module
        zero = sources[0] if gate.index is None else sources[0][gate.index.cpu()]
        return zero | ~alive[gate] if gate in alive else zero
    if point.rule == "flatten":
        return sources[0].repeat_interleave(point.channels // sources[0].numel())
    if point.rule == "permute":
        return sources[0]
    if point.rule == "cat":
        return torch.cat(sources)
    if point.rule == "add":  # with one input the other summand is a constant
        return torch.stack(sources).all(0) if len(point.node.all_input_nodes) > 1 else none
    if point.rule == "mul":
        return torch.stack(sources).any(0)
    if point.rule == "depthwise" and isinstance(point.module, Convolution) and point.module.bias is None:
        return sources[0]
    if point.rule == "channelwise":
        known = isinstance(point.module, ZERO_AT_ZERO) if point.module else point.node.target in ZERO_AT_ZERO_FUNCTIONS
        return sources[0] if known else none
    return none


def _keep(point: Point, kept: dict[Point, Channels], zero: dict[Point, Channels]) -> bool:
    """Apply one rule to the kept channels around a point; says whether anything grew."""
    out = kept[point]
    before = int(out.sum()) + sum(int(kept[source].sum()) for source in point.inputs)
    if point.rule == "whole":
        out |= True
        for source in point.inputs:
            kept[source] |= True
    elif point.rule == "mix":
        source = point.inputs[0]
        kept[source] |= ~zero[source]
        if not kept[source].any():  # a layer needs an input; its weight will be zero
            kept[source][0] = True
        if not out.any():
            out[0] = True
    elif point.rule == "gate" and isinstance(point.module, Gate):
        source, index = point.inputs[0], point.module.index
        if index is None:
            kept[source] |= out
        else:
            kept[source][index.cpu()[out]] = True
    elif point.rule == "flatten":
        source = point.inputs[0]
        block = point.channels // source.channels
        kept[source] |= out.view(-1, block).any(1)
        out |= kept[source].repeat_interleave(block)
    elif point.rule == "cat":
        for source, part in zip(point.inputs, torch.split(out, [s.channels for s in point.inputs]), strict=True):
            kept[source] |= part
            part |= kept[source]
    else:  # channelwise, batchnorm, depthwise, permute, add, mul: all keep the same channels
        for source in point.inputs:
            out |= kept[source]
        for source in point.inputs:
            kept[source] |= out
    return int(out.sum()) + sum(int(kept[source].sum()) for source in point.inputs) > before


def _product(values: tuple[int, ...]) -> int:
    result = 1
    for value in values:
        result *= value
    return result

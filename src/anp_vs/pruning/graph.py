"""The traced network: every tensor, its channel axis, and one rule for the operation that made it.

An operation *mixes* channels (a convolution, a dense layer), *couples* its output's to its input's (elementwise
operations, pooling, normalisation by running statistics, addition), or is not understood. What is not
understood keeps all its channels *whole*, so an unknown operation costs size, never correctness.

| rule | operation | channels of input and output |
|---|---|---|
| mix | convolution, dense layer | independent |
| channelwise, batchnorm, prelu, permute, reshape, add, mul | | the same |
| grouped, groupnorm | grouped or depthwise convolution, group normalisation | the same, whole groups |
| flatten | N x C x H x W to N x CHW | one input channel is H W outputs |
| cat | concatenation of channels | one behind the other |
| gate | `Gate`, `GateReader` | those the gate passes |
| whole | all others | all stay |
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from anp_vs.errors import InputError
from anp_vs.modes import evaluating
from anp_vs.pruning.flow import Flow, propagate
from anp_vs.pruning.gate import Gate
from anp_vs.pruning.operations import BatchNorm
from anp_vs.pruning.points import Channels, Lengths, Point
from anp_vs.pruning.rules import classify, lengths_of
from anp_vs.pruning.tracer import Tracer


class Graph:
    """The traced network, with one rule for each operation.

    Args:
        network: any module that takes one batch of images.
        example: images the network accepts, N x C x H x W; two are enough.

    Attributes:
        points: every tensor, in the order of the forward pass.

    Raises:
        InputError: the network cannot be traced or does not accept the example.
    """

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        traced, values = trace(network, example)
        self.points: list[Point] = []
        points: dict[fx.Node, Point] = {}
        lengths: dict[fx.Node, Lengths] = {}
        calls = _calls(network, traced)
        for node in traced.graph.nodes:
            if node.op != "output" and isinstance(values[node], Plain):
                lengths[node] = lengths_of(node, points, lengths)
                if node.target is not torch._assert:  # which would fail on another number of channels
                    continue
                values[node] = ()
            path = _module_used(network, node)
            module = None if path is None else network.get_submodule(path)
            point = Point(node, path or node.name, module, values.get(node, ()))
            points[node] = point
            self.points.append(point)
            sources = [points[n] for n in node.all_input_nodes if n in points]
            if module is not None:  # its own parameters are no inputs
                sources = [source for source in sources if source.node.op != "get_attr"]
            counted = [p for n in node.all_input_nodes if n in lengths for p in lengths[n].channels]
            found = classify(point, sources, counted, lengths, calls.get(module, 0))
            point.rule, point.axis, point.why = found.name, found.axis, found.why
            point.inputs = list(dict.fromkeys([*sources, *counted]))
            for source in point.inputs:
                source.users.append(point)

    def flow(self, alive: dict[Gate, Channels]) -> Flow:
        """Which channels are zero and which must exist (`anp_vs.pruning.flow`).

        Args:
            alive: for each gate the units that are not pruned; a gate that is missing prunes nothing.
        """
        return propagate(self.points, alive)


@dataclass(frozen=True)
class Plain:
    """Stands for a value that is no tensor and holds none."""


def trace(network: nn.Module, example: Tensor) -> tuple[fx.GraphModule, dict[fx.Node, Any]]:
    """A network's graph in evaluation, and of every node the shape, or `Plain`.

    Raises:
        InputError: the network cannot be traced or does not accept the example.
    """
    with evaluating(network):
        try:
            traced = fx.GraphModule(network, Tracer(example).trace(network))
            values = _Values(traced)
            with torch.no_grad():
                values.run(example)
        except InputError:
            raise
        except Exception as error:  # a forward pass may do anything when it is given symbols
            raise InputError(
                f"{type(network).__name__} could not be traced with an example of shape "
                f"{tuple(example.shape)}: {error}. Pruning needs a forward pass without branches on tensor "
                f"values; move such a branch into a module of its own, or give an example of the right shape."
            ) from error
    return traced, values.found


def example_for(network: nn.Module) -> Tensor:
    """Two grey images of the size a network declares in `input_shape`, in its own precision and device.

    Raises:
        InputError: the network does not declare the size.
    """
    shape = getattr(network, "input_shape", None)
    if shape is None:
        raise InputError(
            f"{type(network).__name__} does not say which images it takes; give `example`, a batch of two "
            f"images N x C x H x W in [0, 1], or set its attribute `input_shape = (C, H, W)`."
        )
    first = next(network.parameters())
    return torch.full((2, *shape), 0.5, dtype=first.dtype, device=first.device)


def _module_used(network: nn.Module, node: fx.Node) -> str | None:
    """Path of the module that a node calls, or whose running statistics its function normalises by."""
    if node.op == "call_module":
        return str(node.target)
    if node.target is not functional.batch_norm:
        return None
    held = node.all_input_nodes[1:]
    paths = {str(n.target).rpartition(".")[0] for n in held}
    path = paths.pop() if len(paths) == 1 and all(n.op == "get_attr" for n in held) else ""
    return path if path and isinstance(network.get_submodule(path), BatchNorm) else None


def _calls(network: nn.Module, traced: fx.GraphModule) -> Counter[nn.Module | None]:
    """How often each module is used in a forward pass, be it only its parameters, plus its further names."""
    owners = {id(p): m for m in network.modules() for p in m._parameters.values() if p is not None}
    calls: Counter[nn.Module | None] = Counter()
    for node in traced.graph.nodes:
        called = _module_used(network, node)
        used: set[nn.Module | None] = set() if called is None else {network.get_submodule(called)}
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                path, _, leaf = str(source.target).rpartition(".")
                used.add(owners.get(id(network.get_submodule(path)._parameters.get(leaf))))
        calls.update(used)
    names = Counter(module for _, module in network.named_modules(remove_duplicate=False))
    for module in list(calls):
        calls[module] += names[module] - 1 if module in names else 0
    # A parameter that two layers hold (tied weights) makes each of them shared.
    for module in list(calls):
        for parameter in module._parameters.values() if module is not None else ():
            if parameter is not None and owners[id(parameter)] is not module:
                calls[module] += 1
                calls[owners[id(parameter)]] += 1
    return calls


class _Values(fx.Interpreter):
    """Runs the traced network once and notes the shape of every tensor."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.found: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = tuple(result.shape)
        else:
            self.found[n] = Plain() if _is_plain(result) else ()
        return result


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(
        value, bool | int | float | str | slice | torch.dtype | torch.device | torch.layout
    )

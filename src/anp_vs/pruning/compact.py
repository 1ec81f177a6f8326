"""Take pruned channels out of a network for real.

`compact` turns a gated network into a plain, smaller one that computes the same function in evaluation, following
the flow of `anp_vs.pruning.flow`. It changes neither the class nor the forward method of the network.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import cast

import torch
from torch import Tensor, nn

from anp_vs.errors import InputError
from anp_vs.networks.copying import copied
from anp_vs.pruning.flow import Flow, block_at, read_by
from anp_vs.pruning.folding import factor_absorbed, factors, folds
from anp_vs.pruning.gate import Gate, gates
from anp_vs.pruning.graph import Graph, example_for
from anp_vs.pruning.points import Channels, Point
from anp_vs.pruning.reader import GatedLayer, GateReader, gate_at
from anp_vs.pruning.slicing import (
    PER_CHANNEL,
    Select,
    replace,
    slice_layer,
)

logger = logging.getLogger(__name__)


def compact(network: nn.Module, example: Tensor | None = None, *, multiple: int = 1) -> nn.Module:
    """A plain, smaller network that computes the same function as the gated one in evaluation.

    Pruned channels leave the weights on both sides, E[pi] of the survivors is folded into the next layer's
    weights, and no gate remains. A network without gates comes back as a copy.

    Args:
        network: a network with gates; not changed.
        example: images N x C x H x W in [0, 1] to trace with; by default made from `network.input_shape`.
        multiple: keep so many pruned units of each gate, at zero, that their number is a multiple of this (or all
            of them): 8 or 16 where the hardware works in blocks. The function is the same.

    Returns:
        A network of the same class in evaluation mode, sharing no memory with the gated one.

    Raises:
        InputError: the network cannot be traced, or `multiple` is below 1.
    """
    if multiple < 1:
        raise InputError(f"multiple is {multiple}; give 1 to keep no pruned unit, or a block size such as 8 or 16.")
    for name, gate in gates(network).items():
        if gate.collapsed():
            logger.warning("Every unit of %s would be pruned; its strongest unit was kept.", name)
    example = example_for(network) if example is None else example
    with torch.no_grad():
        small = unwrapped(Compactor(network, example, multiple).build())
        for module in small.modules():  # what was not sliced is still shared
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    kept = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                    module._parameters[name] = kept
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.clone()
    return small.requires_grad_(True)


def unwrapped(small: nn.Module) -> nn.Module:
    """Put layers that had a gate in front of them back at their own paths, in place.

    Where the gate's place selects channels, a plain sequence of the selection and the layer remains.
    """
    wrappers = [(path, m) for path, m in small.named_modules() if isinstance(m, GatedLayer)]
    for path, wrapper in wrappers:
        if isinstance(wrapper.gate, Select):
            replace(small, path, nn.Sequential(OrderedDict(select=wrapper.gate, layer=wrapper.layer)))
        else:
            replace(small, path, wrapper.layer)
    return small.eval()


def padded(alive: Channels, multiple: int) -> Channels:
    """Units to keep: those alive, and the first pruned ones up to the next multiple."""
    if multiple == 1:  # the twin of training asks in every step
        return alive
    lacking = -int(alive.sum()) % multiple
    extra = (~alive).nonzero()[:lacking, 0]
    return alive.index_fill(0, extra, value=True)


class Compactor:
    """Builds small networks from the present weights of one gated network, tracing it only once.

    Args:
        network: the gated network; its gates' positions must not change between calls of `build`.
        example: images to trace with.
        multiple: see `compact`.
    """

    def __init__(self, network: nn.Module, example: Tensor, multiple: int = 1) -> None:
        self.network = network
        self.multiple = multiple
        self.graph = Graph(network, example)
        self.folded = {point: folds(point) for point in self.graph.points if point.rule == "gate"}
        self._flow: tuple[dict[Gate, Channels], Flow] | None = None

    @torch.no_grad()
    def build(self) -> nn.Module:
        """The small network for the present weights and gates, at the same paths.

        Tensors that did not change are shared with the gated network.
        """
        masks = {gate: gate.mask() for gate in gates(self.network).values()}
        flow = self._flow_for({gate: padded((mask > 0).cpu(), self.multiple) for gate, mask in masks.items()})
        small = copied(self.network, [*self.network.parameters(), *self.network.buffers()]).eval()
        scales = factors(self.graph, self.folded, masks)
        for point in self.graph.points:
            if point.module is None:
                continue
            module, out = small.get_submodule(point.path), flow.kept[point]
            gate, scale = gate_at(point.module), factor_absorbed(point, scales)
            if gate is not None:
                replace(small, point.path, self._without_gate(point, gate, flow, masks[gate]))
            elif point.rule == "mix":
                inputs = flow.kept[point.inputs[0]]
                slice_layer(module, out, inputs, None if scale is None else scale[inputs.to(scale.device)])
            elif point.rule in PER_CHANNEL:
                slice_layer(module, out, None, None if scale is None else scale[out.to(scale.device)])
        return small

    def _flow_for(self, alive: dict[Gate, Channels]) -> Flow:
        """The flow, found anew only when other units are alive than before."""
        if self._flow is not None:
            known, flow = self._flow
            if known.keys() == alive.keys() and all(torch.equal(known[g], units) for g, units in alive.items()):
                return flow
        self._flow = alive, self.graph.flow(alive)
        return self._flow[1]

    def _without_gate(self, point: Point, gate: Gate, flow: Flow, mask: Tensor) -> nn.Module:
        """What stands in a gate's place: nothing where the layers around it absorb it."""
        dim = cast("Gate | GateReader", point.module).dim
        if point.rule != "gate":  # along an axis that is not understood: everything stays
            index = None if gate.index is None else read_by(point).to(mask.device)
            return Select(index, mask.repeat_interleave(block_at(point)), dim=dim)
        source, out = flow.kept[point.inputs[0]], flow.kept[point]
        wanted = read_by(point)[out]
        aligned = wanted.numel() == int(source.sum())
        scale = None if self.folded.get(point) else mask.repeat_interleave(block_at(point))[out.to(mask.device)]
        if aligned and scale is None:
            return nn.Identity()
        place = source.cumsum(0) - 1  # position in the full axis -> position among the kept
        index = None if aligned else place[wanted].to(mask.device)
        return Select(index, scale, dim=dim)

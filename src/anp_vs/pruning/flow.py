"""Which channels of a network must stay when its gates prune: a fixpoint over the traced graph.

For each tensor two facts are kept, one flag a channel:

- `zero`: the channel is exactly zero in evaluation, for every image (found forwards from the gates);
- `kept`: the channel must exist in the small network (found backwards from the logits).

A layer that mixes channels reads every channel that is not zero, and its own outputs are free to go. A gate ends
the chain: of its input it needs the units that are alive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from anp_vs.pruning.gate import Gate, entries
from anp_vs.pruning.operations import ZERO_AT_ZERO, ZERO_AT_ZERO_FUNCTIONS
from anp_vs.pruning.points import Channels, Point
from anp_vs.pruning.reader import GateReader, gate_at


@dataclass(frozen=True)
class Flow:
    """For every tensor: which channels are zero in evaluation, and which must exist.

    Attributes:
        zero, kept: one flag a channel.
        units: for every gate, one flag a unit: which of its units any of its places must keep.
    """

    zero: dict[Point, Channels]
    kept: dict[Point, Channels]
    units: dict[Gate, Channels]


def propagate(points: list[Point], alive: dict[Gate, Channels]) -> Flow:
    """Propagate zeros forwards and what must exist backwards, to the fixpoint.

    Args:
        points: every tensor in the order of the forward pass.
        alive: for each gate the units that are not pruned; a gate that is missing prunes nothing.
    """
    zero: dict[Point, Channels] = {}
    for point in points:
        zero[point] = _zero(point, [zero[source] for source in point.inputs], alive)
    kept = {point: torch.zeros(point.channels, dtype=torch.bool) for point in points}
    units = {g: torch.zeros(g.units, dtype=torch.bool) for p in points if (g := gate_at(p.module)) is not None}
    for point in points:  # a gate whose axis is not understood keeps all its units
        gate = gate_at(point.module)
        if gate is not None and point.rule != "gate":
            units[gate] |= True
    flow = Flow(zero, kept, units)
    changed = True
    while changed:
        changed = False
        for point in reversed(points):
            changed |= _keep(point, flow)
    return flow


def block_at(point: Point) -> int:
    """Entries that one unit covers at the place of a gate or of a gate's reader."""
    return cast("Gate | GateReader", point.module).block


def read_by(point: Point) -> torch.Tensor:
    """Positions in its input of the entries that a gate, or a gate's reader, passes on."""
    gate, block = cast(Gate, gate_at(point.module)), block_at(point)
    units = torch.arange(gate.units) if gate.index is None else gate.index.cpu()
    return entries(units, block)


def pieces(point: Point) -> int:
    """Into how many pieces a grouped convolution or normalisation parts its channels."""
    return point.module.num_groups if isinstance(point.module, nn.GroupNorm) else cast(nn.Conv2d, point.module).groups


def _zero(point: Point, sources: list[Channels], alive: dict[Gate, Channels]) -> Channels:
    none = torch.zeros(point.channels, dtype=torch.bool)
    rule, module = point.rule, point.module
    if rule == "gate":
        gate = cast(Gate, gate_at(module))
        zero = sources[0] if gate.index is None else sources[0][read_by(point)]
        return zero | ~alive[gate].repeat_interleave(block_at(point)) if gate in alive else zero
    if rule == "flatten":
        return sources[0].repeat_interleave(point.channels // sources[0].numel())
    if rule in ("permute", "reshape", "prelu"):
        return sources[0]
    if rule == "cat":
        return torch.cat(sources)
    if rule == "add":  # with one input the other summand is a constant
        return torch.stack(sources).all(0) if len(point.node.all_input_nodes) > 1 else none
    if rule == "mul":
        return torch.stack(sources).any(0)
    if rule == "grouped" and cast(nn.Conv2d, module).bias is None:
        empty = sources[0].view(pieces(point), -1).all(1)
        return empty.repeat_interleave(point.channels // pieces(point))
    if rule == "channelwise":
        known = isinstance(module, ZERO_AT_ZERO) if module is not None else point.node.target in ZERO_AT_ZERO_FUNCTIONS
        return sources[0] if known else none
    return none


def _keep(point: Point, flow: Flow) -> bool:
    """Apply one rule to the kept channels around a point; says whether anything grew."""
    kept, out = flow.kept, flow.kept[point]
    before = int(out.sum()) + sum(int(kept[source].sum()) for source in point.inputs)
    rule, first = point.rule, point.inputs[0] if point.inputs else point
    if rule == "whole":
        out |= True
        for source in point.inputs:
            kept[source] |= True
    elif rule == "mix":
        kept[first] |= ~flow.zero[first]
        if not kept[first].any():  # a layer needs an input; its weight will be zero
            kept[first][0] = True
        if not out.any():
            out[0] = True
    elif rule == "gate":
        units = flow.units[cast(Gate, gate_at(point.module))]
        had, block = int(units.sum()), block_at(point)
        units |= out.view(-1, block).any(1)
        out |= units.repeat_interleave(block)
        kept[first][read_by(point)[out]] = True
        before -= int(units.sum()) - had  # other places of the gate are to follow
    elif rule == "flatten":
        block = point.channels // first.channels
        kept[first] |= out.view(-1, block).any(1)
        out |= kept[first].repeat_interleave(block)
    elif rule in ("grouped", "groupnorm"):
        full = out.view(pieces(point), -1).any(1) | kept[first].view(pieces(point), -1).any(1)
        out |= full.repeat_interleave(point.channels // full.numel())
        kept[first] |= full.repeat_interleave(first.channels // full.numel())
    elif rule == "cat":
        end = 0
        for source in point.inputs:
            part = out[end : end + source.channels]
            kept[source] |= part
            part |= kept[source]
            end += source.channels
    else:  # all keep the same channels
        for source in point.inputs:
            out |= kept[source]
        for source in point.inputs:
            kept[source] |= out
    return int(out.sum()) + sum(int(kept[source].sum()) for source in point.inputs) > before

"""Where a gate's E[pi] can go: through positively homogeneous operations into the weights that read it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from anp_vs.pruning.flow import block_at, read_by
from anp_vs.pruning.gate import Gate
from anp_vs.pruning.graph import Graph
from anp_vs.pruning.operations import HOMOGENEOUS, HOMOGENEOUS_FUNCTIONS
from anp_vs.pruning.points import Point
from anp_vs.pruning.reader import gate_at

Folds = Mapping[Point, bool]
"""Place of a gate -> whether its E[pi] is folded into later weights."""


def absorbs(point: Point) -> bool:
    """Whether a layer can take a factor of each of its input channels into its weights."""
    if point.rule == "grouped":
        weight = point.module._parameters["weight"] if point.module is not None else None
        return weight is not None and weight.shape[1] == 1  # then each output has one input
    return point.rule == "mix"


def folds(point: Point) -> bool:
    """Whether every reader of a tensor can absorb a factor of each channel into its own weights."""
    return bool(point.users) and all(absorbs(user) or (_passes(user) and folds(user)) for user in point.users)


def _passes(point: Point) -> bool:
    """Whether a positive factor of each input channel passes through unchanged."""
    if point.rule in ("flatten", "cat", "permute", "gate"):
        return True
    if point.rule == "reshape":
        return len(point.inputs) == 1
    if point.rule != "channelwise":
        return False
    module = point.module
    return isinstance(module, HOMOGENEOUS) if module is not None else point.node.target in HOMOGENEOUS_FUNCTIONS


def factors(graph: Graph, folded: Folds, masks: Mapping[Gate, Tensor]) -> dict[Point, Tensor | None]:
    """For each tensor the factor of each channel that the weights reading it must absorb, or None.

    Args:
        graph: of the gated network.
        folded: which gates' factors are to be absorbed.
        masks: the factor of each unit of each gate, (K,).
    """
    scales: dict[Point, Tensor | None] = {}
    for point in graph.points:
        inputs = [scales[source] for source in point.inputs]
        scale: Tensor | None = None
        gate = gate_at(point.module)
        if gate is not None and folded.get(point):
            scale, incoming = masks[gate].repeat_interleave(block_at(point)), inputs[0]
            if incoming is not None:
                scale = scale * incoming[read_by(point).to(incoming.device)]
        elif any(i is not None for i in inputs) and _passes(point):
            first = next(i for i in inputs if i is not None)
            if point.rule == "flatten":
                scale = first.repeat_interleave(point.channels // first.numel())
            elif point.rule == "cat":
                parts = zip(inputs, point.inputs, strict=True)
                scale = torch.cat([first.new_ones(s.channels) if i is None else i for i, s in parts])
            elif gate is not None:
                scale = first[read_by(point).to(first.device)]
            else:
                scale = first
        scales[point] = scale
    return scales


def factor_absorbed(point: Point, scales: Mapping[Point, Tensor | None]) -> Tensor | None:
    """The factor that a layer's weight absorbs: of each input for `mix`, of each output for `grouped`."""
    if not absorbs(point):
        return None
    scale = scales[point.inputs[0]]
    if scale is None or point.rule == "mix":
        return scale
    return scale.repeat_interleave(point.channels // scale.numel())

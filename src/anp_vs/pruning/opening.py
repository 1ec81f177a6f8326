"""Gates that have decided: fold what they multiply by into the weights, so that those go on learning well."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anp_vs.pruning.folding import factor_absorbed, factors, folds
from anp_vs.pruning.gate import Gate
from anp_vs.pruning.graph import Graph, example_for
from anp_vs.pruning.reader import gate_at

OPEN_A, OPEN_B = 1e4, 0.5413
"""Unconstrained parameters of a unit that is there for good: a = 10,000, b = 1, E[pi] = 0.9999."""


@torch.no_grad()
def open_gates(network: nn.Module, example: Tensor | None = None) -> None:
    """Fold E[pi] of the surviving units into the layers that read them, in place, and set it to (almost) one.

    The function in evaluation stays the same. Survivors often have E[pi] of a few hundredths; several such
    factors in a row starve the layers behind them of signal and gradient, so weights that go on training alone
    learn many times faster once the factors are theirs.

    Args:
        network: the gated network.
        example: images to trace with; by default made from `network.input_shape`.
    """
    graph = Graph(network, example_for(network) if example is None else example)
    places = [(point, gate) for point in graph.points if (gate := gate_at(point.module)) is not None]
    keeps = {gate for point, gate in places if not folds(point)}
    ratios: dict[Gate, Tensor] = {}
    for gate in {gate for _, gate in places} - keeps:
        mask = gate.mask()
        alive = mask > 0
        gate.a_uc[alive], gate.b_uc[alive] = OPEN_A, OPEN_B
        ratios[gate] = torch.where(alive, mask / gate.mask(), 1.0)
    scales = factors(graph, {point: gate in ratios for point, gate in places}, ratios)
    for point in graph.points:
        scale = factor_absorbed(point, scales)
        if scale is not None and point.module is not None:
            weight = point.module.get_parameter("weight")
            axis = 1 if point.rule == "mix" else 0
            weight.mul_(scale.to(weight.dtype).view([-1 if d == axis else 1 for d in range(weight.dim())]))

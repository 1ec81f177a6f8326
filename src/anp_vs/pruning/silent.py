"""Units that answer no image at all, and networks without them.

A gate decides which units go while it learns; the weights that train on after it may silence others: a filter whose
value stays below zero for every image of [0, 1] is exactly zero behind its ReLU. Interval bounds prove it, without
data, and such a unit can leave a network that computes the same function without it.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from anp_vs.errors import InputError
from anp_vs.networks.copying import copied
from anp_vs.pruning.bounds import Bounds, propagate
from anp_vs.pruning.compact import compact
from anp_vs.pruning.gate import gates
from anp_vs.pruning.graph import Graph, example_for
from anp_vs.pruning.groups import decide
from anp_vs.pruning.insertion import insert
from anp_vs.pruning.reader import axis_read

logger = logging.getLogger(__name__)

CERTAIN = 1e30
"""Unconstrained a of a unit that stays: E[pi] is 1 to the last bit."""


@torch.no_grad()
def without_silent(network: nn.Module, example: Tensor | None = None) -> tuple[nn.Module, dict[str, int]]:
    """A copy without the units that are zero on every image of [0, 1], as far as interval bounds prove it.

    Args:
        network: a classifier without gates (see `compact`); not changed.
        example: images N x C x H x W in [0, 1] to trace with; by default made from `network.input_shape`.

    Returns:
        The copy, which computes the same function on images in [0, 1], and how many units each convolution or dense layer no
        longer reads, by its path. Where no bounds are known for an operation of the network, nothing is proven and all units stay.

    Raises:
        InputError: the network has gates, or cannot be traced.
    """
    if gates(network):
        raise InputError(f"{type(network).__name__} has gates; compact it first.")
    example = example_for(network) if example is None else example
    half = torch.full_like(example[:1], 0.5)
    try:
        read = propagate(network, half, 0.5).read
    except InputError as error:
        logger.info("No unit is proven silent: %s", error)
        return compact(network, example), {}
    decisions = decide(Graph(network, example), "keep")
    zero: dict[str, Tensor] = {}
    for decision in decisions:
        if decision.gate is not None:  # each layer behind one gate may see the units through an activation of its own
            units = _always_zero(read[decision.layer], network.get_submodule(decision.layer), decision.units)
            zero[decision.gate] = zero.get(decision.gate, units) & units
    silent = {path: units for path, units in zero.items() if units.any() and not units.all()}
    if not silent:
        return compact(network, example), {}
    gated = insert(copied(network), [d for d in decisions if d.gate in silent])
    for path, units in silent.items():
        gate = gates(gated)[f"{path}.gate"]
        gate.a_uc.copy_(torch.where(units, -CERTAIN, CERTAIN))
    return compact(gated, example), {path: int(units.sum()) for path, units in silent.items()}


def _always_zero(read: Bounds, layer: nn.Module, units: int) -> Tensor:
    """Of each of the units that a layer reads whether it can be nothing but 0: bool (K,)."""
    zero = ((read.lower == 0) & (read.upper == 0)).movedim(axis_read(layer), 0).flatten(1).all(1)
    return zero.view(units, -1).all(1)

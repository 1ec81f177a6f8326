"""Remove units from a network that keeps its gates and goes on training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from anp_vs.pruning.flow import Flow
from anp_vs.pruning.gate import Gate, gates
from anp_vs.pruning.graph import Graph, example_for
from anp_vs.pruning.points import Channels
from anp_vs.pruning.slicing import PER_CHANNEL, Slices, set_tensor, slice_layer, take


def slices(graph: Graph, flow: Flow) -> Slices:
    """Which entries of each parameter and buffer stay when the gates remain (names as in `state_dict`)."""
    result: Slices = {}
    for point in graph.points:
        module, out = point.module, flow.kept[point].nonzero()[:, 0]
        if isinstance(module, Gate):
            units = flow.units[module].nonzero()[:, 0]
            result |= {f"{point.path}.{name}": [(0, units)] for name in ("a_uc", "b_uc")}
        elif point.rule == "mix":
            inputs = flow.kept[point.inputs[0]].nonzero()[:, 0]
            result[f"{point.path}.weight"] = [(0, out), (1, inputs)]
            result[f"{point.path}.bias"] = [(0, out)]
        elif point.rule in PER_CHANNEL:
            for name in ("weight", "bias", "running_mean", "running_var"):
                result[f"{point.path}.{name}"] = [(0, out)]
    return result


@torch.no_grad()
def shrink(network: nn.Module, dead: Mapping[str, Channels], example: Tensor | None = None) -> Slices:
    """Remove units from a network that keeps its gates, in place.

    In evaluation the function stays the same if the removed units were pruned.

    Args:
        network: the gated network.
        dead: gate path -> bool (K,), the units to take out.
        example: images to trace with; by default made from `network.input_shape`.

    Returns:
        For each parameter and buffer that changed the indices that stayed, so that an optimiser's state and
        averaged weights can follow (`take`).
    """
    found = gates(network)
    graph = Graph(network, example_for(network) if example is None else example)
    flow = graph.flow({gate: ~dead[name].cpu() for name, gate in found.items() if name in dead})
    result = slices(graph, flow)
    for point in graph.points:
        module = point.module
        if isinstance(module, Gate):
            _shrink_gate(module, flow.units[module], flow.kept[point.inputs[0]])
        elif point.rule == "mix" and module is not None:
            slice_layer(module, flow.kept[point], flow.kept[point.inputs[0]], None)
        elif point.rule in PER_CHANNEL and module is not None:
            slice_layer(module, flow.kept[point], None, None)
    return result


def _shrink_gate(gate: Gate, kept: Channels, source: Channels) -> None:
    """Keep some units of a gate whose input keeps the channels `source`."""
    device = gate.a_uc.device
    blocks = source.view(-1, gate.block)
    assert bool((blocks.any(1) == blocks.all(1)).all()), "units of several channels stay or leave whole"
    units = torch.arange(len(blocks)) if gate.index is None else gate.index.cpu()
    wanted, present = units[kept], blocks[:, 0]
    gate.index = None if len(wanted) == int(present.sum()) else (present.cumsum(0) - 1)[wanted].to(device)
    for name in ("a_uc", "b_uc"):
        set_tensor(gate, name, getattr(gate, name)[kept.to(device)])


def follow(
    optimiser: torch.optim.Optimizer,
    before: dict[str, nn.Parameter],
    after: dict[str, nn.Parameter],
    kept: Slices,
) -> None:
    """Let an optimiser's parameters and moments follow a shrunk network."""
    names = {id(parameter): name for name, parameter in before.items()}
    for group in optimiser.param_groups:
        for place, old in enumerate(group["params"]):
            name = names[id(old)]
            new = after[name]
            group["params"][place] = new
            if new is old or old not in optimiser.state:
                continue
            held = optimiser.state.pop(old)
            optimiser.state[new] = {
                key: take(value, kept.get(name, []))
                if isinstance(value, Tensor) and value.shape == old.shape
                else value
                for key, value in held.items()
            }

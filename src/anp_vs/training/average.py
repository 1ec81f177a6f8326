"""The running average of the weights that is evaluated and saved."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anp_vs.pruning.gate import gates
from anp_vs.pruning.slicing import Slices, take

Average = dict[str, Tensor]
"""Names as in the network's `state_dict`."""


@torch.no_grad()
def averaged(average: Average | None, network: nn.Module, decay: float, step: int) -> Average:
    """The average with the present weights in it, in place; without one, it begins with them.

    Args:
        average: so far.
        network: in training.
        decay: of the average, in (0, 1).
        step: of training: early on the average is short, so that the first weights do not linger.
    """
    state = network.state_dict()
    if average is None:
        return {name: value.detach().clone() for name, value in state.items()}
    decay = min(decay, (1 + step) / (10 + step))
    for name, value in state.items():
        held = average[name]
        if held.is_floating_point():
            held.lerp_(value, 1 - decay)
        else:
            held.copy_(value)
    return average


def shrunk(average: Average, network: nn.Module, kept: Slices) -> Average:
    """The average of what stays after units have left the network."""
    # A gate's index comes and goes with what it reads, so it is the network's own.
    indices = {f"{path}.index": gate.index for path, gate in gates(network).items()}
    held = {name: take(value, kept.get(name, [])) for name, value in average.items() if name not in indices}
    return held | {name: index.clone() for name, index in indices.items() if index is not None}

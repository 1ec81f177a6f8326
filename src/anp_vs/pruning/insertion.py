"""Put Beta-Bernoulli gates into a network."""

from __future__ import annotations

from torch import Tensor, nn

from anp_vs.errors import InputError
from anp_vs.pruning.compact import replace
from anp_vs.pruning.gate import Gate, gates


def insert_gates(network: nn.Module, example: Tensor | None = None) -> nn.Module:
    """Put a gate on every prunable layer of a network, in place.

    The built-in networks declare where (`gate_sites`), as published: after the activation, so that a pruned
    channel is exactly zero.

    Args:
        network: a network without gates.
        example: images N x C x H x W in [0, 1] that the network accepts; the built-in networks need none.

    Returns:
        The same network, with gates.

    Raises:
        InputError: the network has gates already, or nowhere to put one.
    """
    if gates(network):
        raise InputError(f"{type(network).__name__} has gates already; insert them once, into a network without.")
    sites: dict[str, tuple[int, float]] | None = getattr(network, "gate_sites", None)
    if not sites:
        raise InputError(f"{type(network).__name__} declares no `gate_sites`, so there is nowhere to put a gate.")
    first = next(network.parameters())
    for path, (units, a_uc) in sites.items():
        replace(network, path, Gate(units, a_uc).to(first.device, first.dtype))
    for path in getattr(network, "dropped_by_gates", ()):
        replace(network, path, nn.Identity())
    return network.train(network.training)

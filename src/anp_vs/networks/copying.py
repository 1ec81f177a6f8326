"""Copies of networks."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def copied(network: Network, shared: Iterable[Tensor] = ()) -> Network:
    """A deep copy, also of a network that keeps results of its last forward pass, which PyTorch alone refuses to copy.

    Args:
        network: may hold such tensors as plain attributes (features it looked at, a weight that is computed in each pass).
        shared: tensors that the copy is to have in common with it.
    """
    memo: dict[int, object] = {id(tensor): tensor for tensor in shared}
    for module in network.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(network, memo)

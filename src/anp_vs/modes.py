"""A network's training and evaluation modes, module by module."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """While open, the network is in evaluation mode; every module gets its own mode back.

    Every submodule's flag is set by itself and restored by itself, so a network that is partly in evaluation
    mode (a frozen BatchNorm in a training network, say) comes back that way.
    """
    modes = [(module, module.training) for module in network.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode

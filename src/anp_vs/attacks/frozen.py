"""Hold a network still while it is attacked."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

NetworkT = TypeVar("NetworkT", bound=nn.Module)


@contextmanager
def frozen(network: NetworkT) -> Iterator[NetworkT]:
    """Evaluation mode and no parameter gradients inside the block; everything as it was before afterwards.

    Every submodule's flag is set by itself and restored by itself, so a network that is partly in evaluation
    mode (a frozen BatchNorm in a training network, say) comes back that way. BatchNorm statistics do not move
    in evaluation mode, and parameters that need no gradient leave their `.grad` alone.

    Args:
        network: any module.

    Yields:
        The same module.
    """
    training = [module for module in network.modules() if module.training]
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for module in training:
            module.training = False
        for parameter in trained:
            parameter.requires_grad_(False)
        yield network
    finally:
        for module in training:
            module.training = True
        for parameter in trained:
            parameter.requires_grad_(True)

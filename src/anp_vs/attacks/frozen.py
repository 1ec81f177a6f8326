"""Hold a network still while it is attacked."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from anp_vs.modes import evaluating

NetworkT = TypeVar("NetworkT", bound=nn.Module)


@contextmanager
def frozen(network: NetworkT) -> Iterator[NetworkT]:
    """Evaluation mode and no parameter gradients inside the block; everything as it was before afterwards.

    BatchNorm statistics do not move in evaluation mode, and parameters that need no gradient leave their `.grad`
    alone.

    Args:
        network: any module.

    Yields:
        The same module.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with evaluating(network):
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            yield network
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

"""A network's forward pass as a graph of layers and functions."""

from __future__ import annotations

from torch import fx, nn

from anp_vs.errors import InputError
from anp_vs.pruning.tracer import LayerTracer


def trace(network: nn.Module) -> fx.GraphModule:
    """The graph of a network: into the user's modules, but the layers of PyTorch and of this package whole.

    Args:
        network: in evaluation mode; shared with the graph, not copied.

    Raises:
        InputError: its forward pass branches on values or does what cannot be traced.
    """
    try:
        return fx.GraphModule(network, LayerTracer().trace(network))
    except Exception as error:  # a forward pass may do anything when it is given symbols
        raise InputError(
            f"{type(network).__name__} cannot be traced: {error}. Its forward pass must not depend on the "
            f"values of tensors; move such a branch into a module of its own."
        ) from error

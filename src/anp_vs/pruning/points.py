"""Tensors of a traced network, and values computed from their lengths."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, fx, nn

Channels = Tensor
"""One bool a channel."""


@dataclass(eq=False)
class Point:
    """One tensor of the traced network: a node of the graph, its channel axis, and what is known of it.

    Attributes:
        path: of the module, or the name of the operation.
        module: whose parameters the operation uses; for most, what is called.
        inputs: the tensors it is made of; for a reshape also one whose number of channels it uses.
        why: for the rule `whole`, what keeps the channels.
    """

    node: fx.Node
    path: str
    module: nn.Module | None
    shape: tuple[int, ...]
    inputs: list[Point] = field(default_factory=list)
    users: list[Point] = field(default_factory=list)
    axis: int = 1
    rule: str = "whole"
    why: str = ""

    @property
    def channels(self) -> int:
        """Channels along the axis."""
        return self.shape[self.axis] if len(self.shape) > self.axis else 1


@dataclass(frozen=True)
class Lengths:
    """A value of the forward pass that is no tensor, as the lengths of tensors' axes it was computed from.

    Attributes:
        axes: tensor and axis of each.
        direct: the value is these lengths, one by one, and not something computed from them.
    """

    axes: tuple[tuple[Point, int], ...] = ()
    direct: bool = False

    @property
    def channels(self) -> list[Point]:
        """The tensors whose number of channels the value depends on."""
        return [point for point, axis in self.axes if axis == point.axis]

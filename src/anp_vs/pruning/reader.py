"""A gate in front of the layer that reads its units, and one gate read at several places."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from anp_vs.pruning.gate import Gate


class GateReader(nn.Module):
    """Applies a gate that stands elsewhere: the same units, and in training the same sample of a pass.

    Where several layers read one set of channels, a channel can only leave if none of them needs it, so they
    share one gate. The gate stands in front of the layer that runs first; the others have readers.

    Args:
        gate: the gate that is applied; its parameters stay its own.
        number: of the gate among the network's gates; saved, so that a loaded network finds it again.
        block: entries of the axis that one unit covers.
        dim: the axis.
    """

    number: Tensor

    def __init__(self, gate: Gate, number: int, *, block: int = 1, dim: int = 1) -> None:
        super().__init__()
        gate.shared = True
        self._gate = (gate,)  # in a tuple it is no child: its parameters are registered once
        self.block, self.dim = block, dim
        self.register_buffer("number", torch.tensor(number))

    @property
    def gate(self) -> Gate:
        """The gate that is applied."""
        return self._gate[0]

    def forward(self, features: Tensor) -> Tensor:
        """Gate features whose axis `dim` has K * block entries, as the gate did earlier in this pass."""
        return self.gate.multiply(features, self.gate.latest(), self.block, self.dim)

    def extra_repr(self) -> str:
        """What the printed network shows of it."""
        return f"{self.gate.units}, gate number {int(self.number)}"


class GatedLayer(nn.Sequential):
    """A convolution or dense layer with a gate on what it reads.

    The layer's attributes are this module's too, so that a network which looks at its layers still can.

    Args:
        gate: a `Gate` or a `GateReader`.
        layer: the layer.
    """

    gate: nn.Module
    layer: nn.Module

    def __init__(self, gate: nn.Module, layer: nn.Module) -> None:
        super().__init__(OrderedDict(gate=gate, layer=layer))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("layer", "gate"):
                raise
            return getattr(self.layer, name)


def axis_read(layer: nn.Module) -> int:
    """The axis of its input along which a convolution or dense layer mixes."""
    return -1 if isinstance(layer, nn.Linear) else 1


def gate_at(module: nn.Module | None) -> Gate | None:
    """The gate that a module is, or reads."""
    if isinstance(module, GateReader):
        return module.gate
    return module if isinstance(module, Gate) else None

"""The training attack's network compiled once: each step's twin only hands its weights over.

A twin is rebuilt at every step, and `torch.compile` takes seconds to minutes. So one twin is compiled and kept, and
the later ones are copied into it: nothing is compiled or allocated anew as long as the shapes stay, which they do
once the gates are fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from anp_vs.attacks.losses import ce
from anp_vs.attacks.prediction import input_gradient
from anp_vs.errors import RunError


class Compiled:
    """Takes twins in, gives a compiled network of the same function back.

    Args:
        backend: of `torch.compile`.
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self.backend = backend
        self.held: nn.Module | None = None
        self.network: nn.Module | None = None

    @torch.no_grad()
    def take(self, twin: nn.Module, images: Tensor, labels: Tensor) -> nn.Module:
        """The compiled network with this twin's weights; compiled anew only where the shapes have changed.

        Args:
            twin: built without kernels of our own (`Twin.build(own_kernels=False)`), which cannot be compiled.
            images: a batch such as will be attacked, N x C x H x W.
            labels: N.

        Raises:
            RunError: it cannot be compiled here.
        """
        if self.held is not None and self.network is not None:
            old, new = _tensors(self.held), _tensors(twin)
            if {n: (t.shape, t.dtype) for n, t in old.items()} == {n: (t.shape, t.dtype) for n, t in new.items()}:
                for name, tensor in old.items():
                    tensor.copy_(new[name])
                return self.network
        torch.compiler.reset()  # what was compiled for other shapes would count against a limit of versions
        network = cast(nn.Module, torch.compile(twin, dynamic=False, backend=self.backend))
        try:
            input_gradient(network, images, labels, ce)
        except Exception as error:  # a compiler that is missing, too old or wrong raises anything
            reason = " ".join(str(error).split())[:300]
            raise RunError(f"torch.compile failed on this machine: {type(error).__name__}: {reason}.") from error
        self.held, self.network = twin, network
        return network


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return dict(chain(network.named_parameters(), network.named_buffers()))

"""Data-parallel training: several processes, each with its share of every batch, one result.

Every process makes the whole batch's draws and keeps its own rows, and gradients and batch statistics are
averaged over all of them, so that the result is that of one process with the same batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed, nn

from anp_vs.errors import InputError, RunError


class Share:
    """This process's share of the work; with one process everything, at no cost.

    Args:
        fabric: launched.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.rank, self.world, self.device = fabric.global_rank, fabric.world_size, fabric.device

    def check(self, batch_size: int) -> None:
        """Refuse a batch that cannot be shared equally.

        Raises:
            InputError: naming the batch size and the processes.
        """
        if batch_size % self.world:
            raise InputError(
                f"batch_size is {batch_size}, which {self.world} processes cannot share equally; give a multiple of {self.world}."
            )

    def rows(self, whole: Tensor) -> Tensor:
        """This process's rows of a whole batch."""
        return whole.chunk(self.world)[self.rank] if self.world > 1 else whole

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """The means over the processes; None stays None."""
        present = [t for t in tensors if t is not None]
        if self.world == 1 or not present:
            return tensors
        flat = torch.cat([t.reshape(-1).to(torch.float32) for t in present])
        distributed.all_reduce(flat)
        parts = iter(torch.split(flat.div_(self.world), [t.numel() for t in present]))
        return [None if t is None else next(parts).view(t.shape).to(t.dtype) for t in tensors]

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Means over the processes of values that all of them have."""
        if self.world == 1 or not values:
            return values
        flat = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        distributed.all_reduce(flat)
        return dict(zip(values, (flat / self.world).tolist(), strict=True))

    def any(self, happened: bool) -> bool:
        """Whether it happened in any process; all of them have to ask."""
        return self.mean({"happened": float(happened)})["happened"] > 0

    def prepare(self, network: nn.Module) -> None:
        """Let the layers that draw, or that look at a whole batch, do so for all processes; in place."""
        if self.world == 1:
            return
        for module in network.modules():
            if hasattr(module, "share"):
                setattr(module, "share", (self.rank, self.world))  # noqa: B010 - only some modules have one
            elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.forward = MethodType(_batch_norm, module)  # type: ignore[method-assign]


def _batch_norm(self: nn.BatchNorm1d | nn.BatchNorm2d, features: Tensor) -> Tensor:
    """Batch normalisation with the statistics of all processes' rows, which PyTorch has for GPUs alone."""
    if not self.training or self.running_mean is None or self.running_var is None:
        return type(self).forward(self, features)
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    axes = [axis for axis in range(features.dim()) if axis != 1]
    count = features.numel() // features.shape[1] * distributed.get_world_size()
    mean = _sum(features.sum(axes)) / count
    shape = [1, -1] + [1] * (features.dim() - 2)
    centred = features - mean.view(shape)
    variance = _sum(centred.square().sum(axes)) / count
    with torch.no_grad():
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked or 1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype) * count / (count - 1), momentum)
    normal = centred * torch.rsqrt(variance + self.eps).view(shape)
    weight, bias = (t.view(shape) for t in (self.weight, self.bias)) if self.affine else (1.0, 0.0)
    return torch.as_tensor(normal * weight + bias)


class _Sum(torch.autograd.Function):
    """Sum over the processes; gradients flow back to all of them."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(context, gradients[0])


def _sum(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return total


@contextmanager
def together(share: Share) -> Iterator[None]:
    """While open, the loss of another process ends this one with a sentence and not with a traceback.

    Raises:
        RunError: another process of the run has gone.
    """
    try:
        yield
    except RuntimeError as error:
        if share.world == 1 or isinstance(error, torch.OutOfMemoryError):
            raise
        raise RunError(
            f"Another of the run's {share.world} processes has ended ({' '.join(str(error).split())[:160]}). The last "
            f"checkpoint is intact: run the same command again to go on from it."
        ) from error

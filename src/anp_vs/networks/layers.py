"""Layers the built-in networks share: normalisation inside the network, and dropout that can share its mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anp_vs.errors import InputError


class Normalize(nn.Module):
    """Standardise [0, 1] images channel by channel, inside the network, so that attacks see pixels.

    Args:
        mean, std: one value a channel, in pixel units of [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images N x C x H x W in [0, 1] to zero mean and unit variance.

        Raises:
            InputError: the images are no floating-point numbers.
        """
        _check_floating(images)
        return (images - self.mean) / self.std


class Standardise(nn.Module):
    """Standardise each [0, 1] image by its own mean and deviation, as the released code's data pipeline does."""

    def forward(self, images: Tensor) -> Tensor:
        """(x - mean) / max(std, 1 / sqrt(n)) over the n values of each image, N x C x H x W.

        Raises:
            InputError: the images are no floating-point numbers.
        """
        _check_floating(images)
        values = images.flatten(1)
        std = values.std(dim=1, correction=0).clamp(min=values.shape[1] ** -0.5)
        return (images - values.mean(dim=1).view(-1, 1, 1, 1)) / std.view(-1, 1, 1, 1)


def _check_floating(images: Tensor) -> None:
    # A symbol that stands for images while a network is traced is no Tensor.
    if isinstance(images, Tensor) and not images.is_floating_point():  # type: ignore[redundant-expr]
        raise InputError(
            f"The images are {images.dtype}; a network takes floating-point numbers in [0, 1]. Give "
            f"images.float() / 255 for images of 0 to 255."
        )


class Dropout(nn.Module):
    """Dropout whose mask can be the same for several equal chunks of the batch.

    Features of a clean and an adversarial image are only comparable under the same mask, so
    `anp_vs.pruning.gate.shared_mask` sets `copies` while both pass through together.

    Args:
        probability: share of elements set to zero in training, in [0, 1).
        channels: drop whole channels (axis 1), as `nn.Dropout2d` does.
    """

    def __init__(self, probability: float, *, channels: bool = False) -> None:
        super().__init__()
        self.probability, self.channels = probability, channels
        self.copies = 1
        self.share = (0, 1)  # as `Gate.share`

    def forward(self, features: Tensor) -> Tensor:
        """Drop elements in training (the rest is scaled up), change nothing in evaluation."""
        if not self.training or not self.probability:
            return features
        rank, world = self.share
        tail = features.shape[1:2] + (1,) * (features.dim() - 2) if self.channels else features.shape[1:]
        shape = (world, features.shape[0] // self.copies, *tail)
        keep = torch.empty(shape, dtype=features.dtype, device=features.device)
        keep = keep.bernoulli_(1 - self.probability).div_(1 - self.probability)[rank]
        if features.dim() == 4 and features.is_contiguous(memory_format=torch.channels_last):
            keep = keep.contiguous(memory_format=torch.channels_last)  # one layout: else both products are slow
        return (torch.unflatten(features, 0, (self.copies, -1)) * keep).flatten(0, 1)

    def extra_repr(self) -> str:
        """The probability."""
        return f"{self.probability}"


def share_dropout(network: nn.Module) -> None:
    """Put `Dropout` in the place of PyTorch's own layers, in place, so that two halves of a batch can share their masks.

    With masks of their own V would hold their noise, and processes that share a batch would each drop the same.
    """
    made: dict[nn.Module, Dropout] = {}  # a layer that is used twice stays one
    for parent in list(network.modules()):
        for name, child in parent._modules.items():
            # Only PyTorch's own: a subclass may compute something else.
            if isinstance(child, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d) and child.p < 1 and (
                type(child).__module__ == nn.Dropout.__module__
            ):  # fmt: skip
                shared = made.setdefault(child, Dropout(child.p, channels=not isinstance(child, nn.Dropout)))
                parent._modules[name] = shared.train(child.training)


def scale_dropout(network: nn.Module, factor: float) -> None:
    """Multiply the probability of every dropout layer, in place.

    Args:
        network: with PyTorch's dropout modules or this one's; dropout called as a function is not seen.
        factor: 0 to 1.
    """
    for module in network.modules():
        if isinstance(module, Dropout):
            module.probability *= factor
        elif isinstance(
            module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
        ):
            module.p *= factor

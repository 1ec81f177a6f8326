"""Augmentation of whole batches, on the device that holds them.

Source: the usual CIFAR recipe (K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
section 4.2), which Madaan, Shin, Hwang (ICML 2020) train with too: zero padding, a random crop, a random
mirror image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from anp_vs.data.split import is_whole
from anp_vs.errors import InputError


def to_float(images: Tensor) -> Tensor:
    """Stored images (uint8, any shape) as a network's input: float32, images / 255, in [0, 1]."""
    return images.float().div_(255)


@dataclass(frozen=True)
class Augmentation:
    """Random crops and mirror images; each image of a batch draws its own.

    Attributes:
        pad: Zero pixels added on every side before a crop of the original size, 0..; 0 crops nothing.
        flip: Whether each image is mirrored left to right with probability 1/2.

    Raises:
        InputError: If pad is not a whole number of at least 0.
    """

    pad: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if not is_whole(self.pad) or self.pad < 0:
            raise InputError(f"pad is {self.pad!r}; give a whole number of pixels, at least 0.")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment one batch.

        Args:
            images: uint8, B x C x H x W.
            generator: Source of the draws, on any device, in this order: if pad > 0, rows then columns of the
                crops; if flip, the mirrors. A CPU generator gives the same draws for every device.

        Returns:
            float32, B x C x H x W, in [0, 1], on the images' device.
        """
        if not self.pad and not self.flip:
            return to_float(images)
        batch, channels, height, width = images.shape
        device = images.device
        rows = torch.arange(height, device=device).expand(batch, -1)
        columns = torch.arange(width, device=device).expand(batch, -1)
        if self.pad:
            corners = self._draw(2 * self.pad + 1, (2, batch, 1), generator, device)
            rows, columns = rows + corners[0], columns + corners[1]
            images = F.pad(images, (self.pad,) * 4)
        if self.flip:
            mirrored = self._draw(2, (batch, 1), generator, device).bool()
            columns = torch.where(mirrored, columns.flip(1), columns)
        # One gather over flattened planes takes the crop and the mirror image at once.
        pixels = rows.unsqueeze(2) * images.shape[3] + columns.unsqueeze(1)
        pixels = pixels.view(batch, 1, -1).expand(-1, channels, -1)
        return to_float(images.flatten(2).gather(2, pixels).view(batch, channels, height, width))

    @staticmethod
    def _draw(count: int, shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
        return torch.randint(count, shape, generator=generator, device=generator.device).to(device)


CROP_FLIP = Augmentation(pad=4, flip=True)
"""Zero-pad 4, random crop, horizontal flip (CIFAR-10 and CIFAR-100)."""

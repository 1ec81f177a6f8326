"""Windows and their patterns in the Square Attack (Andriushchenko et al. 2020, arXiv 1912.00049)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from anp_vs.attacks.noise import Source, uniform


@dataclass(frozen=True)
class Window:
    """One square window an image."""

    top: Tensor
    """First row, int64, N."""
    left: Tensor
    """First column, int64, N."""
    side: int
    height: int
    width: int

    def mask(self) -> Tensor:
        """True inside, N x 1 x H x W."""
        row = torch.arange(self.height, device=self.top.device) - self.top[:, None]
        column = torch.arange(self.width, device=self.top.device) - self.left[:, None]
        rows, columns = (row >= 0) & (row < self.side), (column >= 0) & (column < self.side)
        return (rows[:, :, None] & columns[:, None, :])[:, None]

    def read(self, images: Tensor) -> Tensor:
        """What is inside, N x C x side x side."""
        flat = images.flatten(2)
        return flat.gather(2, self._pixels(flat)).view(*images.shape[:2], self.side, self.side)

    def write(self, images: Tensor, content: Tensor) -> Tensor:
        """`images` with `content` (N x C x side x side) inside."""
        flat = images.flatten(2)
        return flat.scatter(2, self._pixels(flat), content.flatten(2)).view_as(images)

    def _pixels(self, flat: Tensor) -> Tensor:
        offset = torch.arange(self.side, device=self.top.device)
        rows, columns = self.top[:, None] + offset, self.left[:, None] + offset
        pixels = rows[:, :, None] * self.width + columns[:, None, :]
        return pixels.flatten(1)[:, None].expand(-1, flat.shape[1], -1)


def windows(images: Tensor, side: int, row: Tensor, column: Tensor) -> Window:
    """Windows of `side` pixels where the uniform values `row` and `column` (N, in [0, 1)) put them."""
    height, width = images.shape[2:]
    top = (row * (height - side + 1)).long().clamp_(max=height - side)
    left = (column * (width - side + 1)).long().clamp_(max=width - side)
    return Window(top, left, side, height, width)


def whirl(side: int, power: int, like: Tensor) -> Tensor:
    """The pattern of one window, side x side: two halves of opposite sign, each falling off from its centre.

    The values are sums of 1 / (k + 1)^2 (2-norm) or ^4 (1-norm) over the rings k outside the pixel; the sum
    of |values|^power is 1.
    """
    half = side // 2
    pattern = torch.cat((_bump(half, side, power, like), -_bump(side - half, side, power, like)))
    return pattern / pattern.abs().pow(power).sum().pow(1 / power)


def _bump(height: int, width: int, power: int, like: Tensor) -> Tensor:
    row = (torch.arange(height, device=like.device) - height // 2).abs()
    column = (torch.arange(width, device=like.device) - width // 2).abs()
    ring = torch.maximum(row[:, None], column[None, :])
    count = max(height // 2, width // 2) + 1
    exponent = 2 if power == 2 else 4
    terms = torch.arange(1, count + 1, device=like.device, dtype=like.dtype).pow(-exponent)
    return terms.flip(0).cumsum(0).flip(0)[ring]


def tiles(images: Tensor, power: int, generator: Source) -> Tensor:
    """A tiling of five patterns a side with a random sign for each tile and channel, N x C x H x W."""
    count, channels, height, width = images.shape
    side = max(min(height, width) // 5, 1)
    down, across = -(-height // side), -(-width // side)
    random = uniform((count, channels + 1, down, across), generator, images)
    pattern = whirl(side, power, images)
    upright, turned = pattern.repeat(down, across), pattern.T.repeat(down, across)
    random = random.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
    tiling = torch.where(random[:, :1] < 0.5, upright, turned)
    tiling = torch.where(random[:, 1:] < 0.5, -tiling, tiling)
    return tiling[:, :, :height, :width]

"""The first convolution of an attacked network: its gradient with respect to the image, done as a matrix product.

An image has one to three channels, far below the width that a library's convolution kernels are tiled for: on a
CPU the input gradient of LeNet's first layer alone takes two fifths of a PGD step. Written out, it is

    d/dx[b, i, y, x] = sum over (dy, dx) of ( W^T g )[b, (i, dy, dx), y - dy, x - dx]

one small matrix product and k^2 shifted additions, for a part of the batch at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

AT_ONCE = 32
"""Images whose products are held at a time, k^2 times their memory: fewer are slower, more only hold more."""


class _PixelConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.padding, ctx.shape = padding, images.shape
        return functional.conv2d(images, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return input_gradient(gradients[0], weight, ctx.shape, ctx.padding), None, None, None


def input_gradient(gradient: Tensor, weight: Tensor, shape: torch.Size, padding: int) -> Tensor:
    """Gradient of a stride-1 convolution with respect to its input.

    Args:
        gradient: of the output, B x O x H' x W'; channels-last is fastest.
        weight: O x I x k x k.
        shape: of the input, B x I x H x W.
        padding: zeros on every side of the input.
    """
    batch, channels, height, width = shape
    kernel = weight.shape[2:]
    rows, columns = gradient.shape[2:]
    total = gradient.new_zeros(batch, channels, height + 2 * padding, width + 2 * padding)
    for part, sums in zip(torch.split(gradient, AT_ONCE), torch.split(total, AT_ONCE), strict=True):
        flat = part.permute(0, 2, 3, 1).reshape(len(part), rows * columns, len(weight))
        spread = torch.matmul(weight.flatten(1).t(), flat.transpose(1, 2))
        spread = spread.view(len(part), channels, *kernel, rows, columns)
        for dy in range(kernel[0]):
            for dx in range(kernel[1]):
                sums[:, :, dy : dy + rows, dx : dx + columns] += spread[:, :, dy, dx]
    return total[:, :, padding : padding + height, padding : padding + width]


class PixelConv2d(nn.Module):
    """A convolution on images whose parameters are constants.

    Args:
        convolution: stride 1, no dilation, one group, zero padding of the same size on both axes.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.register_buffer("weight", convolution.weight.detach())
        self.register_buffer("bias", None if convolution.bias is None else convolution.bias.detach())
        self.padding = int(convolution.padding[0])

    def forward(self, images: Tensor) -> Tensor:
        """Images B x I x H x W to features B x O x H' x W'."""
        result: Tensor = _PixelConvolution.apply(images, self.weight, self.bias, self.padding)  # type: ignore[no-untyped-call]
        return result


def suits(module: nn.Module) -> bool:
    """Whether a module is a convolution on so few channels that `PixelConv2d` computes it faster."""
    return (
        isinstance(module, nn.Conv2d)
        and module.in_channels <= 3
        and module.groups == 1
        and module.stride == (1, 1)
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and isinstance(module.padding, tuple)
        and module.padding[0] == module.padding[1]
    )

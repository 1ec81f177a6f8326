"""The first layer's convolution against PyTorch's own, in value and in gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from anp_vs.pruning.pixel_conv import AT_ONCE, PixelConv2d, suits


@given(
    batch=st.sampled_from([1, 2, AT_ONCE + 1]),
    channels=st.integers(1, 3),
    out=st.integers(1, 5),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    padding=st.integers(0, 3),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    bias=st.booleans(),
    channels_last=st.booleans(),
)
def test_value_and_gradient(
    batch: int, channels: int, out: int, kernel: tuple[int, int], padding: int, size: tuple[int, int], bias: bool,
    channels_last: bool,
) -> None:  # fmt: skip
    convolution = nn.Conv2d(channels, out, kernel, padding=padding, bias=bias).double()
    assert suits(convolution)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.randn(batch, channels, *size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    wanted = functional.conv2d(images, convolution.weight, convolution.bias, padding=padding)
    found = PixelConv2d(convolution)(images)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(wanted).to(memory_format=layout)
    (gradient,) = torch.autograd.grad(found, images, upstream)
    (reference,) = torch.autograd.grad(wanted, images, upstream)
    torch.testing.assert_close(gradient, reference, rtol=1e-12, atol=1e-12)


def test_gradient_is_the_finite_difference() -> None:
    layer = PixelConv2d(nn.Conv2d(2, 3, 3, padding=1).double())
    assert torch.autograd.gradcheck(layer, (torch.randn(1, 2, 4, 5, dtype=torch.float64).requires_grad_(),))


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(4, 2, 3), nn.Conv2d(3, 2, 3, stride=2), nn.Conv2d(3, 2, 3, dilation=2),
        nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 2, (3, 5), padding=(1, 2)), nn.Conv2d(3, 2, 3, padding="same"), nn.Linear(3, 2),
    ],
)  # fmt: skip
def test_other_layers_are_left_alone(other: nn.Module) -> None:
    assert not suits(other)

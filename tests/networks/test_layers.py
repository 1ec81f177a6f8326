"""Dropout with a shared mask, in both memory layouts."""

import pytest
import torch

from anp_vs.networks.layers import Dropout


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (6, 1, 4, 3), (6, 5, 1, 1), (6, 7)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_mask_is_drawn_once_for_all_copies_whatever_the_layout(
    copies: int, shape: tuple[int, ...], channels_last: bool
) -> None:
    layout = torch.channels_last if channels_last and len(shape) == 4 else torch.contiguous_format
    features = torch.rand(shape).add_(0.5).contiguous(memory_format=layout).requires_grad_()
    dropout = Dropout(0.4).train()
    dropout.copies = copies
    torch.manual_seed(3)
    dropped = dropout(features)
    torch.manual_seed(3)
    keep = torch.empty(shape[0] // copies, *shape[1:]).bernoulli_(0.6).div_(0.6)
    keep = torch.cat([keep] * copies)
    assert torch.equal(dropped, features * keep)
    assert dropped.is_contiguous(memory_format=layout)
    (gradient,) = torch.autograd.grad(dropped.sum(), features)
    assert torch.equal(gradient, keep)

"""Dropout with a shared mask, in both memory layouts."""

import pytest
import torch
from torch import nn

from anp_vs.networks.layers import Dropout, scale_dropout, share_dropout
from anp_vs.pruning.gate import shared_mask


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


@pytest.mark.parametrize("kind", [Dropout, nn.Dropout, nn.Dropout2d])
def test_scaled_dropout_drops_that_share_of_what_it_did(kind: type[nn.Module]) -> None:
    network = nn.Sequential(nn.Sequential(kind(0.4))).train()
    features = torch.ones(400, 250, 1, 1)
    torch.manual_seed(0)
    scale_dropout(network, 0.5)
    dropped = network(features)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.2, abs=0.005)  # twelve standard deviations
    assert float(dropped.max()) == pytest.approx(1 / 0.8)
    scale_dropout(network, 0.0)
    assert torch.equal(network(features), features)


class Plain(nn.Module):
    """A network of a user's own, with PyTorch's dropout of both kinds and one layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.whole, self.each = nn.Conv2d(1, 30, 3), nn.Dropout2d(0.5), nn.Dropout(0.3)
        self.again, self.alpha = self.each, nn.AlphaDropout(0.2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.again(self.each(self.whole(self.conv(images))))  # type: ignore[no-any-return]


def test_pytorchs_dropout_shares_its_masks_too_and_drops_as_it_did() -> None:
    torch.manual_seed(0)
    network, images = Plain(), torch.rand(40, 1, 8, 8)
    untouched = network.conv(images)
    share_dropout(network)
    assert isinstance(network.whole, Dropout)
    assert network.again is network.each
    assert isinstance(network.alpha, nn.AlphaDropout)
    with shared_mask(network):
        clean, adversarial = network(torch.cat([images, images])).chunk(2)
    assert torch.equal(clean, adversarial)
    whole = network.whole(untouched).flatten(2)
    gone = (whole == 0).all(2)
    assert torch.equal(gone, (whole == 0).any(2))  # channels go whole, and what stays is scaled up
    torch.testing.assert_close(whole[~gone], 2 * untouched.flatten(2)[~gone])
    assert abs(float(gone.float().mean()) - 0.5) < 4 * (0.25 / gone.numel()) ** 0.5
    apart = (network.each(untouched) == 0).float()
    assert abs(float(apart.mean()) - 0.3) < 4 * (0.21 / apart.numel()) ** 0.5
    assert torch.equal(network.eval()(images), untouched)

"""The training loss's vulnerability: its gradient against the composed formula, and the layout it comes in."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anp_vs.networks.latents import Reduction, distortion


def composed(latent: Tensor, reduction: Reduction) -> Tensor:
    """The formula, from library functions."""
    clean, adversarial = latent.chunk(2)
    moved = functional.l1_loss(clean, adversarial, reduction="none").flatten(1)
    return (moved.mean(1) if reduction == "mean" else moved.sum(1)).mean()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradient_is_the_formulas(reduction: Reduction) -> None:
    features = {"a": torch.randn(6, 5, 3, 3).double(), "b": torch.randn(6, 7).double()}
    features["a"][3] = features["a"][0]  # a pair that does not move has no direction
    for latent in features.values():
        latent.requires_grad_()
    value = distortion(features, reduction)
    expected = torch.stack([composed(latent, reduction) for latent in features.values()]).mean()
    torch.testing.assert_close(value, expected)
    ours, theirs = (torch.autograd.grad(3.0 * loss, list(features.values())) for loss in (value, expected))
    torch.testing.assert_close(ours, theirs)
    assert not ours[0][[0, 3]].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_keeps_the_layout_of_the_features(dtype: torch.dtype) -> None:
    layers = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()).to(dtype, memory_format=torch.channels_last)
    images = torch.randn(4, 3, 8, 8, dtype=dtype).contiguous(memory_format=torch.channels_last)
    layouts = []
    convolved = layers[0](images)
    convolved.register_hook(lambda g: layouts.append(g.is_contiguous(memory_format=torch.channels_last)))
    distortion({"relu": layers[1](convolved)}).backward()
    assert layouts == [True]

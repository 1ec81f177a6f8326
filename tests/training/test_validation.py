"""Validation: figures that can be worked out by hand, on a network that reads one pixel."""

import pytest
import torch
from torch import Tensor, nn

from anp_vs.data import Split
from anp_vs.training.validation import IMAGES, validate
from training.tiny import recipe


class OnePixel(nn.Module):
    """Says 1 where the first pixel is above a half, else 0, the surer the farther; some images are answered wrongly."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        margin = images[:, 0, 0, 0] - 0.5
        return torch.stack([-margin, margin], 1)


@pytest.mark.parametrize(("eps", "robust"), [(0.0, 75.0), (0.1, 50.0), (0.3, 25.0), (0.45, 0.0)])
def test_an_image_is_robust_when_it_is_right_and_farther_from_the_boundary_than_eps(eps: float, robust: float) -> None:
    levels = torch.tensor([0.55, 0.70, 0.90, 0.90] * 50).view(-1, 1, 1, 1).mul(255).round().to(torch.uint8)
    labels = torch.tensor([1, 1, 1, 0] * 50)
    network = OnePixel()
    asked = recipe("at", test_attack={"eps": eps, "step": 0.01, "steps": 1})
    figures = validate(network, Split(levels, labels), asked, lambda: False)
    assert figures == {"clean_accuracy": 75.0, "robust_accuracy": robust}
    assert set(network.calls) == {125, 94, 75, 56}  # two batches, and what is right of each


def test_only_the_first_images_are_looked_at_and_a_batch_that_is_all_wrong_is_not_attacked() -> None:
    count = IMAGES + 50
    dark = Split(torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.ones(count, dtype=torch.int64))
    network = OnePixel()
    assert validate(network, dark, recipe("at"), lambda: False) == {"clean_accuracy": 0.0, "robust_accuracy": 0.0}
    assert network.calls == [125] * (IMAGES // 125)

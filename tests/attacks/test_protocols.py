"""The two protocols: standardisation, what is clipped, and what stays the same on grey images."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anp_vs.attacks import pgd
from anp_vs.attacks.protocols import Budget, PixelSpace, ReleasedCode, protocol_by_name
from anp_vs.errors import InputError
from anp_vs.networks import build
from anp_vs.networks.layers import Standardise

standardise = Standardise()


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(3 * 4 * 4, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.dense(images.flatten(1))  # type: ignore[no-any-return]


def test_standardisation_by_numpy() -> None:
    images = torch.rand(5, 3, 4, 4)
    images[0] = 0.3  # constant: divided by 1 / sqrt(48), not by zero
    expected = [(x - x.mean()) / max(x.std(), 48**-0.5) for x in images.double().numpy()]
    np.testing.assert_allclose(standardise(images), np.stack(expected), atol=1e-5)
    assert standardise(images)[0].abs().max() < 1e-5
    with pytest.raises(InputError, match=r"uint8.*floating-point"):
        standardise((255 * images).byte())


def test_the_released_attack_on_a_linear_network_ends_where_its_clips_allow() -> None:
    network = Linear().requires_grad_(False)
    shown = standardise(torch.rand(6, 3, 4, 4))
    labels = torch.tensor([0, 1] * 3)
    budget = Budget(0.03, 0.007, 40)
    found = ReleasedCode().attack(network, shown, labels, budget, loss="ce", draws=1, generator=None)
    # The loss rises along the other class's weights less the own one's; clipped to the ball, then to [0, 1].
    direction = (network.dense.weight[1 - labels] - network.dense.weight[labels]).view_as(shown).sign()
    torch.testing.assert_close(found, (shown + 0.03 * direction).clamp(0, 1), atol=1e-6, rtol=0)
    outside = (shown > 1.03) | (shown < -0.03)
    assert outside.double().mean() > 0.3
    assert torch.equal(found[outside], shown.clamp(0, 1)[outside])


def test_grey_images_are_the_same_under_both(generator: torch.Generator) -> None:
    network, images, labels = build("lenet5-caffe").eval(), torch.rand(3, 1, 28, 28), torch.tensor([1, 2, 3])
    released = ReleasedCode()
    assert released.prepare(images) is images
    found = released.attack(network, images, labels, Budget(0.3, 0.1, 3), loss="ce", draws=1, generator=generator)
    again = torch.Generator().manual_seed(generator.initial_seed())
    assert torch.equal(found, pgd(network, images, labels, eps=0.3, step=0.1, steps=3, generator=again))


def test_the_networks_own_normalisation_is_taken_out_of_a_copy() -> None:
    network = build("vgg16").eval()
    adapted = ReleasedCode().adapt(network)
    images = torch.rand(2, 3, 32, 32)
    normalised = network.get_submodule("normalize")(images)
    torch.testing.assert_close(adapted(normalised), network(images))
    assert PixelSpace().adapt(network) is network


def test_unknown_protocols_and_norms_are_refused() -> None:
    with pytest.raises(InputError, match="pixel-space"):
        protocol_by_name("pixels")
    shown = standardise(torch.rand(2, 3, 4, 4))
    with pytest.raises(InputError, match="norm"):
        ReleasedCode().attack(
            Linear(),
            shown,
            torch.tensor([0, 1]),
            Budget(1.0, 0.1, 2, "2"),
            loss="ce",
            draws=1,
            generator=None,
        )

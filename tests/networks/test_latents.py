"""The training loss's vulnerability: its gradient against the composed formula, and the layout it comes in."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anp_vs.evaluation.landscape import feature_maps
from anp_vs.evaluation.vulnerability import vulnerability
from anp_vs.methods import ATVS
from anp_vs.networks.latents import Reduction, distortion, recorded
from anp_vs.pruning.gate import units_held
from anp_vs.training.watch import silent_layers


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


class TwoActivations(nn.Module):
    """Two convolutions, each with a ReLU behind it: one module for both, or one for each."""

    input_shape = (1, 8, 8)

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 5, 3), nn.Linear(5, 4)
        self.relu1 = nn.ReLU()
        self.relu2 = self.relu1 if shared else nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu2(self.conv2(self.relu1(self.conv1(images))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def networks() -> tuple[TwoActivations, TwoActivations]:
    one, two = TwoActivations(shared=True), TwoActivations(shared=False)
    one.load_state_dict(two.state_dict())
    return one.eval(), two.eval()


def test_an_activation_that_is_called_twice_counts_as_two(networks: tuple[TwoActivations, TwoActivations]) -> None:
    clean, adversarial, labels = torch.rand(6, 1, 8, 8), torch.rand(6, 1, 8, 8), torch.arange(6) % 4
    one, two = networks
    with recorded(one) as features:
        for _ in range(2):  # every pass counts anew
            one(clean)
    assert {name: latent.shape[1] for name, latent in features.items()} == {"relu1": 3, "relu1#2": 5}
    assert units_held(one, features) == {"relu1": 1.0, "relu1#2": 1.0}
    measured, expected = (vulnerability(network, clean, adversarial) for network in networks)
    assert measured.value == expected.value
    assert [layer.path for layer in measured.layers] == ["relu1", "relu1#2"]
    assert all(torch.equal(a.units, b.units) for a, b in zip(measured.layers, expected.layers, strict=True))
    maps, others = feature_maps(one, clean, adversarial, "relu1#2"), feature_maps(two, clean, adversarial, "relu2")
    assert torch.equal(maps.clean, others.clean)
    gradients = []
    for network in networks:
        loss = ATVS(lambda_=10.0).objective(network, clean, adversarial, labels, 6).weights
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    torch.testing.assert_close(*gradients)


def test_a_call_that_is_silent_is_told_from_one_that_is_not(networks: tuple[TwoActivations, TwoActivations]) -> None:
    one, _ = networks
    with torch.no_grad():
        one.conv1.bias.fill_(-10.0)  # type: ignore[union-attr]
        one.conv2.bias.fill_(1.0)  # type: ignore[union-attr]
    assert silent_layers(one, torch.rand(4, 1, 8, 8)) == ["relu1"]

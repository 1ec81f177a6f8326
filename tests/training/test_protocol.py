"""Training under the released code's protocol: on standardised tensors, attacked there and clipped to [0, 1]."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from anp_vs import serialization
from anp_vs.data import Dataset, Split
from anp_vs.errors import InputError
from anp_vs.networks import NETWORKS
from anp_vs.networks.layers import Normalize, Standardise
from anp_vs.recipes import RECIPES, override, prerequisite
from anp_vs.training import run
from anp_vs.training.loop import Trainer
from training.tiny import TinyConvolution, patched, recipe


class Colour(TinyConvolution):
    """The tiny network for colour images, each of which it standardises by itself."""

    input_shape = (3, 28, 28)

    def __init__(self, classes: int = 10) -> None:
        super().__init__(classes)
        self.normalize: nn.Module = Standardise()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self.normalize(images))


class Usual(Colour):
    """By the mean and deviation of the data set."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(classes)
        self.normalize = Normalize((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


@pytest.fixture(autouse=True)
def networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "colour", Colour)
    monkeypatch.setitem(NETWORKS, "usual", Usual)


def coloured() -> Dataset:
    draws = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (80, 3, 28, 28), generator=draws, dtype=torch.uint8)
    labels = torch.arange(80) % 10
    parts = [Split(pictures[a:b], labels[a:b]) for a, b in ((0, 48), (48, 64), (64, 80))]
    return Dataset("coloured", *parts, tuple("0123456789"))


def trainer(name: str = "at", /, **changes: Any) -> Trainer:
    asked = recipe(name, **{"network": "colour", "protocol": "released-code", "eps_warmup": 0.0} | changes)
    return Trainer(asked, coloured(), Fabric(accelerator="cpu", devices=1))


def by_numpy(images: Tensor) -> np.ndarray[Any, Any]:
    flat = images.double().numpy().reshape(len(images), -1)
    least = 1 / np.sqrt(flat.shape[1])
    shown = (flat - flat.mean(1, keepdims=True)) / np.maximum(flat.std(1, keepdims=True), least)
    return shown.reshape(images.shape)


def test_what_is_learnt_from_is_the_standardised_tensor_and_its_clipped_neighbourhood() -> None:
    """On a fresh network nothing is clipped twice, and the network itself does not standardise again."""
    training = trainer()
    images, labels = training.batch()
    usual = trainer(protocol="pixel-space")
    pixels, same = usual.batch()
    assert torch.equal(labels, same)
    np.testing.assert_allclose(images.numpy(), by_numpy(pixels), atol=2e-5)
    attacked = training.attack(images, labels)
    assert attacked.min() == 0
    assert attacked.max() == 1
    inside = (images > 0.1) & (images < 0.9)
    moved = (attacked - images).abs()
    assert moved[inside].max() <= 0.1 + 1e-6
    assert moved[inside].mean() > 0.03
    for outside, edge in ((images < -0.1, 0.0), (images > 1.1, 1.0)):
        assert (attacked[outside] == edge).all()
    with torch.no_grad():
        own, bare = training.evaluation_network(), Colour()
        bare.load_state_dict(own.state_dict())
        bare.eval().normalize = nn.Identity()
        torch.testing.assert_close(own(attacked), bare(attacked))
        assert not torch.allclose(own(attacked), own(Standardise()(attacked)), atol=1e-3)


@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_validation_attacks_there_too(eps: float) -> None:
    """At eps 0 an attacked image is the clipped tensor, which is not what clean accuracy is measured on."""
    attack = {"eps": eps, "step": 0.01, "steps": 1}
    training = trainer("standard", test_attack=attack, epochs=30, average=0.0, lr=0.01)
    while training.step < 15:
        training.advance()
    training.validation = training.train  # some of it is learnt by now
    found = training.validate()
    assert found is not None
    images, labels = (coloured().train.images / 255), coloured().train.labels
    shown = torch.from_numpy(by_numpy(images)).float()
    network = training.evaluation_network()
    with torch.no_grad():
        right = network(shown).argmax(1) == labels
        clipped = right & (network(shown.clamp(0, 1)).argmax(1) == labels)
    assert found["clean_accuracy"] == pytest.approx(100 * float(right.float().mean()))
    assert found["clean_accuracy"] > found["robust_accuracy"]
    if eps:
        assert found["robust_accuracy"] < 100 * float(clipped.float().mean())
    else:
        assert found["robust_accuracy"] == pytest.approx(100 * float(clipped.float().mean()))
        assert clipped.any()


def test_the_network_that_is_saved_takes_pixels(path: Path) -> None:
    asked = recipe("anp-vs", network="colour", protocol="released-code")
    with patched(load_data=lambda *_, **__: coloured()):
        whole = run.train(asked, out=path, quiet=True).network
    pixels = torch.rand(8, 3, 28, 28)
    bare = Colour()
    small = serialization.load(path / "compact")
    assert serialization.card_of(small)["threat_model"]["space"].startswith("standardised images")
    for network in (whole, small):
        assert isinstance(network.normalize, Standardise)
        with torch.no_grad():
            logits = network(pixels)
            network.normalize = nn.Identity()
            shown = torch.from_numpy(by_numpy(pixels)).float()
            torch.testing.assert_close(network(shown), logits, atol=1e-4, rtol=1e-4)
    assert type(small) is type(bare)


@pytest.mark.parametrize("kind", ["usual", "none", "one value"])
def test_a_network_that_would_be_saved_as_another_is_refused_before_anything_is_trained(
    kind: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fronts = {"none": nn.Identity(), "one value": Normalize((0.5,), (0.25,))}

    def make(classes: int) -> nn.Module:
        network = Usual(classes)
        network.normalize = fronts.get(kind, network.normalize)
        return network

    monkeypatch.setitem(NETWORKS, "own", make)
    asked = recipe("anp-vs", network="own", protocol="released-code", start="digits/standard", teacher="digits/at")
    message = r"standardised by itself, which own does not do\. Choose the network vgg16-standardised"
    with patched(load_data=lambda *_, **__: coloured()), pytest.raises(InputError, match=message):
        run.train(asked, out=path, quiet=True)
    assert not list(path.parent.glob("**/network.json"))


def test_what_comes_before_a_run_is_of_its_protocol() -> None:
    changes = {"name": "mine/admm", "network": "vgg16-standardised", "protocol": "released-code"}
    before = prerequisite(override(RECIPES["cifar10/admm"], changes))
    assert before is not None
    assert (before.name, before.protocol, before.network) == ("mine/admm-start", "released-code", "vgg16-standardised")


def test_the_released_recipes_are_the_papers_under_its_protocol() -> None:
    for table in ("cifar10", "cifar100"):
        for row in ("standard", "bp", "at", "at-bnn", "pretrained-at", "admm", "trades", "anp-vs"):
            paper, released = RECIPES[f"{table}/{row}"], RECIPES[f"{table}-released/{row}"]
            assert (released.protocol, released.network) == ("released-code", "vgg16-standardised")
            assert (paper.method, paper.attack, paper.epochs, paper.lr) == (
                released.method, released.attack, released.epochs, released.lr
            )  # fmt: skip

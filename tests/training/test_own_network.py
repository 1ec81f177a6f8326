"""Networks as users write them, in training: what they leave out is not asked for, what cannot be trained is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anp_vs import serialization
from anp_vs.errors import InputError
from anp_vs.networks import NETWORKS
from anp_vs.training import run
from anp_vs.training.network import fresh_network
from training.tiny import digits, equal, log_of, recipe, trainer

pytestmark = pytest.mark.usefixtures("tiny")


class FunctionalActivations(nn.Module):
    """No activation is a module."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(1, 6, 3, 2), nn.Conv2d(6, 8, 3, 2), nn.Linear(8 * 36, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.relu(self.conv2(functional.relu(self.conv1(images))))
        return self.fc(x.flatten(1))  # type: ignore[no-any-return]


@pytest.fixture
def functional_network(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(NETWORKS, "functional", FunctionalActivations)
    return "functional"


@pytest.mark.parametrize("method", ["standard", "trades", "at", "anp", "at-vs"])
def test_without_activation_modules_methods_without_v_train(method: str, functional_network: str, path: Path) -> None:
    more = {"method": {"name": method, "lambda_": 0.0}} if method == "at-vs" else {}
    done = run.train(recipe(method, network=functional_network, **more), out=path, quiet=True)
    assert done.network(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    assert not any("vulnerability" in line for line in log_of(path))


@pytest.mark.parametrize("method", ["at-vs", "anp-vs"])
def test_a_method_with_v_refuses_a_network_without_latent_features(
    method: str, functional_network: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        InputError, match=r"FunctionalActivations has no activation module.*set its attribute `latents`"
    ):
        run.train(recipe(method, network=functional_network), out=path, quiet=True)
    assert not path.exists()
    monkeypatch.setattr(FunctionalActivations, "latents", ("conv1",), raising=False)
    trainer(method, network=functional_network).advance()


def test_latent_features_that_no_pass_reaches_are_refused(
    functional_network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = NETWORKS[functional_network]

    def with_spare(classes: int) -> nn.Module:
        network = build(classes)
        network.spare = nn.ReLU()
        return network

    monkeypatch.setitem(NETWORKS, functional_network, with_spare)
    with pytest.raises(InputError, match="No module of the network's latent features was called"):
        trainer("at-vs", network=functional_network).advance()


class AuxiliaryHead(FunctionalActivations):
    """Gives the logits of a second head too, or its features as they are, when it trains."""

    def __init__(self, classes: int = 10, kind: str = "tuple") -> None:
        super().__init__(classes)
        self.kind = kind

    def forward(self, images: Tensor) -> Any:
        logits = super().forward(images)
        if not self.training:
            return logits
        return {"tuple": (logits, logits), "dict": {"out": logits}, "tensor": logits[..., None]}[self.kind]


@pytest.mark.parametrize(
    ("kind", "named"), [("tuple", "a tuple"), ("dict", "a dict"), ("tensor", r"a tensor of shape \(2, 10, 1\)")]
)
@pytest.mark.parametrize("method", ["standard", "at"])
def test_what_is_no_logits_in_training_mode_is_refused(
    method: str, kind: str, named: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "auxiliary", lambda classes: AuxiliaryHead(classes, kind))
    with pytest.raises(InputError, match=f"AuxiliaryHead returns {named} in training mode.*without auxiliary heads"):
        run.train(recipe(method, network="auxiliary"), out=path, quiet=True)
    assert not path.exists()


def test_looking_at_a_network_in_training_mode_leaves_no_trace() -> None:
    """Neither its statistics nor the random numbers that come after it."""
    drawn = []
    for begin in (lambda: NETWORKS["tiny-convolution"](10), lambda: fresh_network(recipe(), digits())):
        torch.manual_seed(3)
        drawn.append((dict(begin().state_dict()), torch.rand(3)))
    equal(*drawn)


class HeadFirst(FunctionalActivations):
    """Its head is registered before what comes first, and one normalisation never leaves evaluation mode."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(classes)
        del self.conv1
        self.conv1, self.norm = nn.Conv2d(1, 6, 3, 2), nn.BatchNorm2d(6).eval()

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + 0 * self.norm(self.conv1(images)).mean()


@pytest.mark.parametrize("method", ["standard", "at"])
def test_the_order_of_layers_and_a_frozen_normalisation_are_kept(
    method: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "head-first", HeadFirst)
    done = run.train(recipe(method, network="head-first"), out=path, quiet=True)
    assert serialization.card_of(done.network)["logits"] == 10
    assert list(done.network.state_dict())[-6] != "fc.weight"
    assert int(done.network.get_buffer("norm.num_batches_tracked")) == 0

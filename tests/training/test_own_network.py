"""Networks as users write them, in training: what they leave out is not asked for, what cannot be trained is refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anp_vs.errors import InputError
from anp_vs.networks import NETWORKS
from anp_vs.training import run
from training.tiny import log_of, recipe, trainer

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

"""A network that hides its gradients is caught; a sound one, robust or not, passes."""

import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anp_vs.attacks import pgd
from anp_vs.errors import InputError
from anp_vs.evaluation.masking import Diagnosis, diagnose
from anp_vs.evaluation.robustness import evaluate
from anp_vs.evaluation.signs import square_after_gradients

EPS = 0.1


def data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three classes on 1 x 6 x 6 images: a bright stripe in one of three places, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = 0.3 + 0.12 * torch.randn(count, 1, 6, 6, generator=generator)
    for label in range(3):
        images[labels == label, :, 2 * label : 2 * label + 2] += 0.27
    return images.clamp(0, 1), labels


def trained(adversarial: bool) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.ReLU(), nn.Linear(32, 3))
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for step in range(60):
        images, labels = data(90, step)
        if adversarial:
            images = pgd(network, images, labels, eps=EPS, step=EPS / 2, steps=4)
        optimiser.zero_grad()
        F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return network.eval()


@pytest.fixture(scope="module")
def robust() -> nn.Module:
    return trained(adversarial=True)


@pytest.fixture(scope="module")
def standard() -> nn.Module:
    return trained(adversarial=False)


class Saturated(nn.Module):
    """Logits so far apart that the probabilities are exactly 0 and 1, and the loss has no gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return 1e4 * self.network(images)  # type: ignore[no-any-return]


class Quantised(Saturated):
    """Inputs rounded to nine levels: the same function nearly everywhere, without a gradient anywhere."""

    def forward(self, images: Tensor) -> Tensor:
        return self.network((8 * images).round() / 8)  # type: ignore[no-any-return]


class WrongGradient(Saturated):
    """Computes the network, but its gradient is that of a network with the input turned upside down."""

    def forward(self, images: Tensor) -> Tensor:
        other = self.network(images.flip(2))
        return other + (self.network(images) - other).detach()  # type: ignore[no-any-return]


def look(network: nn.Module, **options: object) -> Diagnosis:
    given = {"eps": EPS, "step": 0.02, "steps": 10, "progress": False} | options
    return diagnose(network, data(48, 1000), **given)  # type: ignore[arg-type]


def seen(diagnosis: Diagnosis) -> set[str]:
    return {sign.name for sign in diagnosis.signs if sign.suspicious}


@pytest.mark.parametrize("kind", ["robust", "standard"])
def test_a_sound_network_passes(kind: str, request: pytest.FixtureRequest) -> None:
    other = {"robust": "standard", "standard": "robust"}[kind]
    found = look(request.getfixturevalue(kind), source=request.getfixturevalue(other))
    assert not seen(found), found.verdict()
    assert not found.suspicious
    assert found.verdict().startswith("No sign of masked gradients in 10 checks on 48 images")
    eps_curve = [point.accuracy for point in found.against_eps]
    assert eps_curve[0] > 95
    assert eps_curve[-1] == 0.0
    assert eps_curve == sorted(eps_curve, reverse=True)
    # Along the gradient the margin rises with the distance, and faster than along a random direction.
    along = [rise for _, rise, _ in found.rise]
    assert along == sorted(along)
    assert all(rise > aside for _, rise, aside in found.rise)


def test_saturated_logits_are_caught(standard: nn.Module, robust: nn.Module) -> None:
    found = look(Saturated(standard), source=robust)
    assert seen(found) >= {
        "the loss does not hide the gradient",
        "loss rises along the gradient",
        "input gradients are not zero",
    }
    assert found.verdict().startswith("Signs of masked gradients")


def test_a_quantised_input_is_caught(standard: nn.Module) -> None:
    found = look(Quantised(standard), source=standard)
    assert seen(found) >= {
        "white box is not weaker than black box",
        "unbounded attack reaches 0 %",
        "search without gradients finds nothing",
        "loss rises along the gradient",
        "input gradients are not zero",
    }
    assert found.zero_gradients == 100.0


def test_a_gradient_that_points_elsewhere_is_caught(standard: nn.Module) -> None:
    found = look(WrongGradient(standard), source=standard)
    assert {"white box is not weaker than black box", "loss rises along the gradient"} <= seen(found)
    assert "input gradients are not zero" not in seen(found)


@pytest.mark.parametrize("kind", ["sound", "quantised"])
def test_what_square_finds_after_gradients_is_a_sign(kind: str, robust: nn.Module) -> None:
    network = robust if kind == "sound" else Quantised(robust)
    row = evaluate(
        network, data(48, 1000), eps=EPS, step=0.02, steps=10, restarts=1, autoattack=48, masking=12, progress=False
    )  # fmt: skip
    (found,) = (
        sign for sign in row["diagnosis"]["signs"] if sign["name"] == "AutoAttack's gradients leave Square nothing"
    )
    *_, stood, left = (round(0.48 * accuracy) for accuracy in row["autoattack_after"].values())
    assert found["reason"] == f"Square broke {stood - left} of the {stood} images that stood against APGD and FAB."
    assert found["suspicious"] == (kind == "quantised")
    assert found["reason"] in row["diagnosis"]["verdict"]


@pytest.mark.parametrize(
    ("left", "suspicious"), [(1.0, False), (0.99, False), (0.98, False), (0.97, True), (0.0, True)]
)
def test_one_image_in_fifty_is_chance(left: float, suspicious: bool) -> None:
    sign = square_after_gradients({"apgd-ce": 1.0, "fab-t": 1.0, "square": left}, 100)
    assert sign is not None
    assert sign.suspicious == suspicious
    assert square_after_gradients({"apgd-ce": 1.0, "apgd-dlr": left}, 100) is None


def test_the_diagnosis_is_data(robust: nn.Module) -> None:
    found = look(robust, limit=20)
    again = json.loads(json.dumps(found.as_dict()))
    assert again["suspicious"] is False
    assert again["images"] == 20
    assert [point["steps"] for point in again["against_steps"]] == [1, 4, 10, 25]
    assert len(again["signs"]) == len(found.verdict().splitlines()) - 1 == 10
    assert look(robust, limit=20) == found
    assert found.verdict().startswith("No sign of masked gradients in 9 checks")  # there was no source network
    assert found.verdict().splitlines()[-1].startswith("  ? white box is not weaker than black box: not checked")


def test_without_an_attack_there_is_nothing_to_look_for(robust: nn.Module) -> None:
    with pytest.raises(InputError, match="eps"):
        look(robust, eps=0.0)

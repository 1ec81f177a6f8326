"""Corruptions and certificates of a row, against a linear network where both are known in closed form."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from anp_vs.errors import InputError
from anp_vs.evaluation.beyond import SHARES, beyond_attacks, described

EPS = 0.3


@pytest.fixture
def linear() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 2))


@pytest.fixture
def pair(linear: nn.Sequential) -> Iterator[tuple[Tensor, Tensor]]:
    images = torch.rand(40, 1, 6, 6)
    with torch.no_grad():
        yield images, linear(images).argmax(1)


def test_interval_bounds_prove_what_a_linear_network_withstands(
    linear: nn.Sequential, pair: tuple[Tensor, Tensor]
) -> None:
    found = beyond_attacks(linear, pair, eps=EPS, certify=30, progress=False)["certificates"]
    difference = (linear[1].weight[1] - linear[1].weight[0]).detach().double()
    images, labels = pair[0][:30].flatten(1).double(), pair[1][:30]
    with torch.no_grad():
        bias = (linear[1].bias[1] - linear[1].bias[0]).double()
        for share, point in zip(SHARES, found["interval"], strict=True):
            lower, upper = (images - share * EPS).clamp_min(0), (images + share * EPS).clamp_max(1)
            side = (2 * labels - 1).double()[:, None] * difference  # the worst image goes against the own class
            worst = torch.where(side > 0, lower, upper)
            stands = (worst @ difference + bias) * (2 * labels - 1) > 0
            assert point == {"eps": share * EPS, "accuracy": pytest.approx(100 * float(stands.double().mean()))}
    assert found["images"] == 30
    accuracies = [point["accuracy"] for point in found["smoothed"]["accuracy"]]
    assert accuracies == sorted(accuracies, reverse=True)


def test_a_network_that_sees_one_pixel_is_hurt_by_what_moves_it() -> None:
    """The answer is whether the middle pixel is bright: a change of contrast about the mean hurts, JPEG hardly."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(49, 2))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].weight[:, 24] = torch.tensor([-10.0, 10.0])
        network[1].bias.copy_(torch.tensor([5.0, -5.0]))
    images = torch.zeros(20, 1, 7, 7)
    images[10:, :, 3, 3] = 1
    labels = torch.arange(20) // 10
    found = beyond_attacks(network, (images, labels), eps=EPS, corruptions=20, progress=False)["corruptions"]
    assert found["clean"] == 100
    # Translation by more than half a pixel takes the bright one away, contrast halved or less darkens it below 1/2.
    assert found["accuracy"]["contrast"][-1] == 50
    assert found["accuracy"]["translation"][-1] == 50
    assert found["accuracy"]["rotation"][0] == 100


def test_what_cannot_be_bounded_is_said() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(36, 3)

        def forward(self, images: Tensor) -> Tensor:
            return torch.fft.fft(self.dense(images.flatten(1))).real

    pair = (torch.rand(4, 1, 6, 6), torch.zeros(4, dtype=torch.int64))
    found = beyond_attacks(Odd(), pair, eps=EPS, certify=4, progress=False)["certificates"]
    assert found["interval"] is None
    assert "fft" in found["interval_missing"]


def test_certificates_of_a_random_network_count_independent_draws(pair: tuple[Tensor, Tensor]) -> None:
    """Its answer is one fair coin a pass: the votes of a batch agree, so only single copies show that it is one."""

    class Coin(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            heads = torch.randn(2)
            return heads.expand(len(images), 2) + 0 * images.flatten(1)[:, :2]

    first = beyond_attacks(Coin(), pair, eps=EPS, certify=2, draws=2, progress=False)["certificates"]
    assert first["interval"] is None
    assert "random" in first["interval_missing"]
    assert [point["accuracy"] for point in first["smoothed"]["accuracy"][1:]] == [0, 0, 0]
    torch.rand(3)
    assert beyond_attacks(Coin(), pair, eps=EPS, certify=2, draws=2, progress=False)["certificates"] == first


def test_the_sentences_hold_the_figures(linear: nn.Sequential, pair: tuple[Tensor, Tensor]) -> None:
    row = beyond_attacks(linear, pair, eps=EPS, corruptions=40, certify=10, progress=False)
    text = " ".join(described(row))
    worst = min(row["corruptions"]["accuracy"].values(), key=sum)
    for value in (row["corruptions"]["mean"], sum(worst) / 5, row["certificates"]["interval"][2]["accuracy"]):
        assert f"{value:.1f} %" in text
    assert described({"clean_accuracy": 1.0}) == []


@pytest.mark.parametrize("asked", [{"corruptions": 0}, {"certify": -1}])
def test_counts_below_one_are_refused(
    linear: nn.Sequential, pair: tuple[Tensor, Tensor], asked: dict[str, int]
) -> None:
    with pytest.raises(InputError, match=r"limit|at least 1"):
        beyond_attacks(linear, pair, eps=EPS, progress=False, **asked)  # type: ignore[arg-type]

"""Certificates against closed forms: a linear network under Gaussian noise, SciPy's binomial bound."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from anp_vs.errors import InputError
from anp_vs.evaluation.certify import ABSTAINED, certify_smoothed, clopper_pearson_lower


@pytest.mark.parametrize(
    ("successes", "trials", "alpha"),
    [
        (0, 10, 0.05),
        (10, 10, 0.001),
        (7, 10, 0.05),
        (950, 1000, 0.001),
        (1, 5, 0.4),
        (99_000, 100_000, 0.001),
    ],
)
def test_the_binomial_bound_by_scipy(successes: int, trials: int, alpha: float) -> None:
    expected = stats.binomtest(successes, trials, alternative="greater").proportion_ci(1 - alpha, "exact").low
    assert clopper_pearson_lower(successes, trials, alpha) == pytest.approx(expected, abs=1e-9)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(9, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.dense(images.flatten(1))  # type: ignore[no-any-return]


def test_a_linear_networks_radius_is_its_distance_to_the_boundary() -> None:
    network = Linear()
    weight = (network.dense.weight[1] - network.dense.weight[0]).detach()
    images = torch.rand(12, 1, 3, 3)
    with torch.no_grad():
        logits = network(images)
    distance = (logits[:, 1] - logits[:, 0]) / weight.norm()
    labels = (distance > 0).long()
    sigma, samples, alpha = 0.5, 20_000, 0.001
    found = certify_smoothed(
        network,
        (images, labels),
        sigma=sigma,
        samples=samples,
        alpha=alpha,
        batch_size=10_000,
        progress=False,
    )
    # The share of noisy copies on the image's side is Phi(distance / sigma); the bound costs a little of it.
    largest = sigma * stats.norm.ppf(alpha ** (1 / samples))
    for predicted, radius, label, true in zip(found.predicted, found.radius, labels, distance.abs(), strict=True):
        if predicted == ABSTAINED:
            assert true < 0.03
            assert radius == 0
            continue
        assert predicted == label
        assert radius <= true + 1e-6
        assert radius == pytest.approx(min(float(true), largest), abs=0.04)
    share = float(((found.predicted == labels) & (found.radius >= 0.1)).double().mean())
    assert found.certified_accuracy(0.1) == pytest.approx(100 * share)
    assert found.certified_accuracy(math.inf) == 0.0


def test_bad_values_are_refused() -> None:
    pair = (torch.rand(2, 1, 3, 3), torch.tensor([0, 1]))
    for options in ({"sigma": 0.0}, {"sigma": 0.1, "alpha": 1.0}, {"sigma": 0.1, "samples": 0}):
        with pytest.raises(InputError):
            certify_smoothed(Linear(), pair, progress=False, **options)  # type: ignore[arg-type]

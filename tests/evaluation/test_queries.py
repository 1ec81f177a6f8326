"""Queries on a linear network, whose optimal perturbation is known."""

import pytest
import torch
from torch import Tensor, nn

from anp_vs.errors import InputError
from anp_vs.evaluation.queries import query_accuracy

EPS = 0.05


def linear(seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        network[1].weight.normal_(generator=generator)  # type: ignore[union-attr, operator]
        network[1].bias.copy_(-0.5 * network[1].weight.sum(1))  # type: ignore[union-attr, operator, arg-type]
    return network


@torch.no_grad()
def weight(network: nn.Module) -> Tensor:
    return network[1].weight[1] - network[1].weight[0]  # type: ignore[no-any-return, index]


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    images = 0.2 + 0.6 * torch.rand(90, 1, 4, 4)
    return images, torch.arange(90) % 2


def test_queries_lie_between_the_optimum_and_the_clean_accuracy(pair: tuple[Tensor, Tensor]) -> None:
    images, labels = pair
    network = linear(0)
    logits = network(images).detach()
    margins = (logits[:, 1] - logits[:, 0]) * (2 * labels - 1)
    optimum = 100 * float((margins > EPS * weight(network).abs().sum()).double().mean())
    clean = 100 * float((margins > 0).double().mean())
    few, many = (
        float(query_accuracy(network, pair, eps=EPS, queries=q, progress=False)["query_accuracy"]) for q in (5, 400)
    )
    assert optimum <= many <= few <= clean
    assert many < clean
    row = query_accuracy(network, pair, eps=0.0, queries=5, progress=False, limit=30)
    assert row["query_accuracy"] == pytest.approx(100 * float((margins[:30] > 0).double().mean()))
    assert (row["queries"], row["images"]) == (5, 30)


def test_bad_values_are_refused(pair: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(InputError, match="queries"):
        query_accuracy(linear(0), pair, eps=EPS, queries=0)

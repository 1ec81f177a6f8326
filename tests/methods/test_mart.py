from collections.abc import Callable

import pytest
import torch
from torch import nn

from anp_vs.methods import MART, Standard
from anp_vs.methods.mart import boosted_cross_entropy, mart_loss
from methods_reference import mart


def test_the_loss_is_that_of_the_formula() -> None:
    clean, attacked = 2 * torch.randn(2, 7, 5, dtype=torch.float64)
    labels = torch.randint(5, (7,))
    expected = mart(clean.numpy(), attacked.numpy(), labels.numpy(), 5.0)
    assert mart_loss(clean, attacked, labels, 5.0).item() == pytest.approx(expected, rel=1e-12)


def test_its_gradient_flows_through_every_factor() -> None:
    clean, attacked = torch.randn(2, 4, 5, dtype=torch.float64).requires_grad_().unbind()
    labels = torch.tensor([0, 1, 4, 2])
    assert torch.autograd.gradcheck(lambda c, a: mart_loss(c, a, labels, 5.0), (clean, attacked))


def test_a_certain_wrong_answer_has_a_finite_loss_and_gradient() -> None:
    """-log(1 - p) where p rounds to 1: with logits 300, 0, 0 it is 300 - log 2 to the last bit."""
    logits = torch.tensor([[300.0, 0.0, 0.0]], requires_grad=True)
    value = boosted_cross_entropy(logits, torch.tensor([1]))
    assert value.item() == pytest.approx(300 + 300 - torch.tensor(2.0).log().item())
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    torch.testing.assert_close(gradient, torch.tensor([[2.0, -1.5, -0.5]]))


def test_with_two_classes_it_is_twice_the_cross_entropy() -> None:
    logits, labels = torch.randn(9, 2), torch.randint(2, (9,))
    expected = 2 * nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(boosted_cross_entropy(logits, labels), expected)


def test_an_image_that_is_surely_right_adds_no_divergence() -> None:
    sure = torch.tensor([[60.0, 0.0, 0.0]], dtype=torch.float64)
    attacked, labels = torch.randn(1, 3, dtype=torch.float64), torch.tensor([0])
    torch.testing.assert_close(mart_loss(sure, attacked, labels, 50.0), mart_loss(sure, attacked, labels, 0.0))
    assert mart_loss(-sure, attacked, labels, 50.0) > mart_loss(-sure, attacked, labels, 0.0) + 1


def test_the_objective_is_the_loss_of_its_network() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    images, adversarial = torch.rand(2, 6, 1, 2, 2, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    with torch.no_grad():
        clean, attacked = network(images).numpy(), network(adversarial).numpy()
    objective = MART(lambda_=3.0).objective(network, images, adversarial, labels, 100)
    assert objective.weights.item() == pytest.approx(mart(clean, attacked, labels.numpy(), 3.0), rel=1e-12)


def test_it_makes_robust(digits: tuple, train: Callable, build: Callable, accuracy: Callable) -> None:
    robust = []
    for method in (Standard(), MART()):
        torch.manual_seed(0)
        robust.append(accuracy(train(method, build(), digits[0], 100), digits[1], 0.15))
    assert robust[1] > robust[0] + 15, robust

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from anp_vs.methods import TRADES, Standard
from anp_vs.methods.trades import divergence, trades_loss
from methods_reference import divergences, trades


def pair(scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    clean, attacked = scale * torch.randn(2, 7, 5, dtype=torch.float64)
    return clean, attacked, torch.randint(5, (7,))


def test_the_loss_is_that_of_the_formula() -> None:
    clean, attacked, labels = pair()
    expected = trades(clean.numpy(), attacked.numpy(), labels.numpy(), 6.0)
    assert trades_loss(clean, attacked, labels, 6.0).item() == pytest.approx(expected, rel=1e-12)


def test_both_sides_of_the_divergence_receive_a_gradient() -> None:
    """Finite differences see the clean side too; a detached target would fail here."""
    clean, attacked, labels = pair()
    clean.requires_grad_()
    attacked.requires_grad_()
    assert torch.autograd.gradcheck(lambda c, a: trades_loss(c, a, labels, 6.0), (clean, attacked))
    (gradient,) = torch.autograd.grad(divergence(clean, attacked).sum(), clean)
    assert gradient.abs().max() > 1e-3


def test_a_class_that_is_ruled_out_does_not_spoil_the_loss() -> None:
    clean = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    attacked = torch.tensor([[0.0, 200.0, -200.0]], requires_grad=True)
    value = divergence(clean, attacked)
    assert value.item() == pytest.approx(200.0)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value.sum(), (clean, attacked)))


def test_the_objective_is_the_loss_of_its_network() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    images, adversarial = torch.rand(2, 6, 1, 2, 2, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    objective = TRADES(beta=3.0).objective(network, images, adversarial, labels, 100)
    with torch.no_grad():
        clean, attacked = network(images), network(adversarial)
    expected = trades(clean.numpy(), attacked.numpy(), labels.numpy(), 3.0)
    assert objective.weights.item() == pytest.approx(expected, rel=1e-12)
    assert objective.gates is None
    torch.testing.assert_close(objective.logits, attacked)
    torch.testing.assert_close(objective.clean_logits, clean)


def test_the_attack_ascends_the_divergence_summed_over_classes_from_a_constant_answer() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout(0.9)).double().train()
    images = torch.rand(5, 1, 2, 2, dtype=torch.float64)
    loss = TRADES().attack_loss(network, images)
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():  # in evaluation mode: dropout must not have spoken
        clean = network[1](images.flatten(1))
    expected = divergences(clean.numpy(), logits.detach().numpy())
    np.testing.assert_allclose(loss(logits, torch.zeros(5, dtype=torch.int64)).detach(), expected, rtol=1e-10)
    assert network.training
    # d KL(p || softmax z) / dz = softmax z - p
    (gradient,) = torch.autograd.grad(loss(logits, torch.zeros(5, dtype=torch.int64)).sum(), logits)
    torch.testing.assert_close(gradient, logits.detach().softmax(1) - clean.softmax(1))


def test_the_attack_does_not_start_where_its_gradient_is_zero() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    images = torch.rand(5, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    loss = TRADES().attack_loss(network, images)
    (gradient,) = torch.autograd.grad(loss(network(images), torch.zeros(5, dtype=torch.int64)).sum(), images)
    assert gradient.abs().max() < 1e-12
    assert TRADES().start_radius == 0.001


def test_beta_trades_accuracy_for_robustness(
    digits: tuple, train: Callable, build: Callable, accuracy: Callable
) -> None:
    robust, clean = {}, {}
    for name, method in {
        "standard": Standard(),
        "little": TRADES(beta=0.5),
        "much": TRADES(beta=12.0),
    }.items():
        torch.manual_seed(0)
        network = train(method, build(), digits[0], 100)
        robust[name], clean[name] = accuracy(network, digits[1], 0.15), accuracy(network, digits[1])
    assert robust["much"] > robust["little"] > robust["standard"] + 15, robust
    assert clean["little"] > clean["much"] > 75, clean

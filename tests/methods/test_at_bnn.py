from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from anp_vs.attacks import pgd
from anp_vs.methods import ATBNN
from anp_vs.networks.bayesian import bayesian_layers, weights_kl
from anp_vs.recipes import RECIPES
from anp_vs.training.optimisers import Optimisers


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 10))


def test_the_loss_is_cross_entropy_of_the_drawn_network_and_the_kl_of_all_layers() -> None:
    network = ATBNN(prior_sigma=0.3).prepare(small())
    images, labels = torch.rand(5, 1, 8, 8), torch.tensor([3, 1, 4, 1, 5])
    torch.manual_seed(1)
    objective = ATBNN(alpha=0.5).objective(network, torch.zeros_like(images), images, labels, 200)
    torch.manual_seed(1)
    logits = network(images)
    kl = sum(
        torch.distributions.kl_divergence(
            torch.distributions.Normal(mu, rho.exp()),
            torch.distributions.Normal(torch.tensor(0.0), torch.tensor(0.3)),
        ).sum()
        for layer in (network[0], network[3])
        for mu, rho in ((layer.weight, layer.weight_rho), (layer.bias, layer.bias_rho))
    )
    expected = -logits.log_softmax(1)[range(5), labels].mean() + 0.5 * kl / 200
    torch.testing.assert_close(objective.weights, expected)
    assert objective.gates is None
    assert objective.clean_logits is None
    torch.testing.assert_close(objective.logits, logits.detach())


def test_means_and_spreads_of_every_layer_learn() -> None:
    network = ATBNN().prepare(small())
    images, labels = torch.rand(5, 1, 8, 8), torch.tensor([3, 1, 4, 1, 5])
    objective = ATBNN().objective(network, images, images, labels, 200)
    names = [name for name, _ in network.named_parameters()]
    assert {name.rpartition(".")[2] for name in names} == {"weight", "weight_rho", "bias", "bias_rho"}
    gradients = torch.autograd.grad(objective.weights, list(network.parameters()))
    assert all(g.abs().max() > 0 for g in gradients)


def test_the_released_default_starts_of_both_networks() -> None:
    for prior_sigma, initial_rho in ((1.0, -3.0), (0.1, -5.0)):
        network = ATBNN(prior_sigma=prior_sigma, initial_rho=initial_rho).prepare(small())
        layers = bayesian_layers(network)
        assert list(layers) == ["0", "3"]
        assert all(float(x.weight_rho.detach().unique()) == initial_rho for x in layers.values())
        assert all(x.prior_sigma == prior_sigma for x in layers.values())


def test_it_learns_to_be_robust_and_random(digits: tuple, train: Callable, build: Callable, accuracy: Callable) -> None:
    """The KL falls, two predictions differ, and their average is right under an attack on the average."""
    method = ATBNN(alpha=0.01)
    torch.manual_seed(0)
    network = method.prepare(build())
    before = weights_kl(network).item()
    train(method, network, digits[0], 180)
    assert weights_kl(network).item() < 0.97 * before
    images, labels = digits[1].images[:150], digits[1].labels[:150]
    assert not torch.equal(network(images), network(images))
    adversarial = pgd(network, images, labels, eps=0.15, step=0.04, steps=8, draws=5)
    with torch.no_grad():
        averaged = torch.stack([network(adversarial).softmax(1) for _ in range(10)]).mean(0)
        plain = torch.stack([network(images).softmax(1) for _ in range(10)]).mean(0)
    assert 100 * (plain.argmax(1) == labels).float().mean() > 80
    assert 100 * (averaged.argmax(1) == labels).float().mean() > 45


def test_a_larger_alpha_stays_closer_to_the_prior(digits: tuple, train: Callable, build: Callable) -> None:
    distances = []
    for alpha in (0.0, 1.0):
        torch.manual_seed(0)
        method = ATBNN(alpha=alpha)
        distances.append(weights_kl(train(method, method.prepare(build()), digits[0], 60)).item())
    assert distances[1] < distances[0]


@pytest.mark.parametrize(("method", "decays"), [("at", True), ("at-bnn", False)])
def test_the_prior_stands_in_the_place_of_weight_decay(method: str, decays: bool, build: Callable) -> None:
    """An L2 penalty on rho would pull every spread to exp(0) = 1."""
    recipe = replace(RECIPES[f"mnist/{method}"], optimiser="sgd", weight_decay=0.1)
    network = recipe.method.prepare(build())
    before = [parameter.detach().clone() for parameter in network.parameters()]
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    Optimisers(recipe, network, lambda gradients: gradients).step(gates_learn=False)
    assert all(map(torch.equal, network.parameters(), before)) != decays

"""FGSM and PGD against the optimum that a linear network has in closed form."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anp_vs.attacks import fgsm, geometry, losses, pgd, transfer
from anp_vs.attacks.geometry import Norm
from anp_vs.errors import InputError
from attacks.small_networks import (
    NORMS,
    Linear,
    Noisy,
    accuracy,
    digits_network,
    distances,
    held_out,
    linear,
    lowest_margin,
    margin,
)


def problem(norm: str, count: int = 40) -> tuple[Linear, Tensor, Tensor]:
    """A two-class network and images; far from the box where the closed form does not know the box."""
    network = linear()
    images = torch.rand(count, 1, 6, 6)
    if norm == "2":
        images = 0.4 + 0.2 * images
    return network, images, network(images).argmax(dim=1)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_fgsm_is_optimal_on_a_linear_network(norm: Norm) -> None:
    network, images, labels = problem(norm)
    adversarial = fgsm(network, images, labels, eps=0.1, norm=norm)
    expected = lowest_margin(network, images, labels, 0.1, norm).float()
    assert torch.allclose(margin(network, adversarial, labels), expected, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_reaches_the_optimum_of_a_linear_network(norm: Norm) -> None:
    network, images, labels = problem(norm)
    eps = {"inf": 0.1, "2": 0.3, "1": 1.5}[norm]
    adversarial = pgd(network, images, labels, eps=eps, step=eps / 20, steps=100, norm=norm)
    expected = lowest_margin(network, images, labels, eps, norm)
    reached = margin(network, images, labels) - margin(network, adversarial, labels)
    possible = margin(network, images, labels) - expected
    assert float((reached / possible).min()) >= {"inf": 0.9999, "2": 0.999, "1": 0.97}[norm]
    assert float((reached / possible).max()) <= 1 + 1e-4
    assert bool((distances(images, adversarial, norm) <= eps).all())


@pytest.mark.parametrize("norm", NORMS)
def test_results_stay_in_the_threat_model_of_eps_in_float_and_double(norm: Norm) -> None:
    network, (images, labels) = digits_network(robust=False), held_out(40)
    for eps in (8 / 255, 0.3, 1.0):
        adversarial = pgd(network, images, labels, eps=eps, step=eps / 3, steps=4, norm=norm, restarts=2)
        assert bool((distances(images, adversarial, norm) <= eps).all())
        assert float(adversarial.min()) >= 0
        assert float(adversarial.max()) <= 1
        if norm == "inf":
            assert float((adversarial - images).abs().max()) <= eps


def test_accuracy_falls_with_eps_with_steps_and_with_restarts() -> None:
    network, (images, labels) = digits_network(robust=True), held_out(150)

    def attacked(eps: float, steps: int, restarts: int = 1) -> float:
        generator = torch.Generator().manual_seed(0)
        adversarial = pgd(
            network,
            images,
            labels,
            eps=eps,
            step=2.5 * eps / steps,
            steps=steps,
            restarts=restarts,
            generator=generator,
        )
        return accuracy(network, adversarial, labels)

    by_eps = [accuracy(network, images, labels)] + [attacked(eps, 10) for eps in (0.05, 0.1, 0.2, 0.4)]
    assert by_eps == sorted(by_eps, reverse=True)
    assert by_eps[0] - by_eps[-1] > 0.5
    by_steps = [attacked(0.15, steps) for steps in (1, 4, 20)]
    assert by_steps == sorted(by_steps, reverse=True)
    assert attacked(0.15, 4, restarts=4) <= by_steps[1]


def test_of_restarts_each_image_keeps_a_misclassified_result_with_the_highest_loss() -> None:
    network, (images, labels) = digits_network(robust=True), held_out(60)
    generator = torch.Generator().manual_seed(1)
    single = [pgd(network, images, labels, eps=0.2, step=0.1, steps=3, generator=generator) for _ in range(4)]
    generator.manual_seed(1)
    best = pgd(network, images, labels, eps=0.2, step=0.1, steps=3, restarts=4, generator=generator)

    def rank(results: Tensor) -> list[tuple[bool, float]]:
        logits = network(results)
        return list(zip((logits.argmax(1) != labels).tolist(), losses.ce(logits, labels).tolist(), strict=True))

    ranks = [rank(results) for results in single]
    assert rank(best) == [max(column) for column in zip(*ranks, strict=True)]


def test_eps_zero_returns_the_images_and_a_seed_the_same_result() -> None:
    network, (images, labels) = digits_network(robust=False), held_out(10)
    assert torch.equal(pgd(network, images, labels, eps=0.0, step=0.1, steps=2), images)
    assert torch.equal(fgsm(network, images, labels, eps=0), images)

    def seeded(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return pgd(network, images, labels, eps=0.1, step=0.02, steps=3, generator=generator)

    assert torch.equal(seeded(5), seeded(5))
    assert not torch.equal(seeded(5), seeded(6))


def test_more_draws_come_nearer_to_the_optimum_against_the_mean_of_a_random_network() -> None:
    mean, images, labels = problem("inf")
    mean.bias.data = -mean.weight.data.sum(dim=1) / 2
    network = Noisy(mean, spread=3.0)
    possible = margin(mean, images, labels) - lowest_margin(mean, images, labels, 0.1, "inf")

    def share(draws: int) -> float:
        adversarial = fgsm(network, images, labels, eps=0.1, loss="margin", draws=draws)
        return float(((margin(mean, images, labels) - margin(mean, adversarial, labels)) / possible).mean())

    shares = [share(draws) for draws in (1, 8, 200)]
    assert shares == sorted(shares)
    assert shares[0] < 0.6
    assert shares[2] > 0.95


def test_precision_of_the_network_does_not_coarsen_the_images() -> None:
    class Bfloat(Linear):
        def forward(self, images: Tensor) -> Tensor:
            return F.linear(images.flatten(1).bfloat16(), self.weight.bfloat16(), self.bias.bfloat16())

    exact, images, labels = problem("inf")
    network = Bfloat(exact.weight.detach(), exact.bias.detach())
    adversarial = pgd(network, images, labels, eps=1 / 255, step=1 / 1000, steps=8)
    assert adversarial.dtype == torch.float32
    at_bounds = ((adversarial - images).abs() - 1 / 255).abs() < 1e-6
    assert float(at_bounds.float().mean()) > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": -0.1}, "eps"),
        ({"step": 0.0}, "step"),
        ({"steps": 0}, "steps"),
        ({"norm": "3"}, "norm"),
        ({"restarts": 0}, "restarts"),
        ({"steps": 1.5}, "steps is 1.5; it must be a whole number"),
        ({"draws": 0}, "draws"),
        ({"loss": "nonsense"}, "nonsense"),
    ],
)
def test_arguments_outside_their_range_are_refused(change: dict[str, object], message: str) -> None:
    network, images, labels = problem("inf")
    arguments = {"eps": 0.1, "step": 0.1, "steps": 1} | change
    with pytest.raises(InputError, match=message):
        pgd(network, images, labels, **arguments)  # type: ignore[arg-type]


def test_images_that_a_network_is_not_made_for_are_refused() -> None:
    network, images, labels = problem("inf")
    with pytest.raises(InputError, match=r"does not accept torch.float32 images of shape \(40, 1, 5, 6\)"):
        pgd(network, images[:, :, 1:], labels, eps=0.1, step=0.1, steps=1)
    with pytest.raises(InputError, match=r"does not accept torch\.float64 images"):
        pgd(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), images.double(), labels, eps=0.1, step=0.1, steps=1)


class Particular(nn.Module):
    """Says by itself, with an error of its own choice, which images it wants."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, images: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize("error", [AssertionError("wants 32 pixels"), KeyError("wants 32 pixels")])
def test_whatever_a_network_raises_at_images_is_told_as_a_refusal(error: Exception) -> None:
    _, images, labels = problem("inf")
    with pytest.raises(InputError, match=r"does not accept .*wants 32 pixels"):
        pgd(Particular(error), images, labels, eps=0.1, step=0.1, steps=1)


def test_a_full_memory_is_no_refusal() -> None:
    _, images, labels = problem("inf")
    with pytest.raises(torch.OutOfMemoryError):
        pgd(Particular(torch.OutOfMemoryError("full")), images, labels, eps=0.1, step=0.1, steps=1)


def test_networks_whose_answer_is_no_use_are_refused() -> None:
    network, images, labels = problem("inf")

    def refused(module: nn.Module, message: str) -> None:
        with pytest.raises(InputError, match=message):
            pgd(module, images, labels, eps=0.1, step=0.1, steps=1)

    refused(nn.Sequential(network, nn.Softmax(dim=1)), "probabilities")
    refused(nn.Sequential(network, nn.Flatten(0)), "logits of shape")
    refused(Linear(network.weight.data[:1], network.bias.data[:1]), "two classes")
    refused(Linear(network.weight.data * torch.nan, network.bias.data), "not finite")
    with pytest.raises(InputError, match="reach 2"):
        pgd(network, images, labels + 1, eps=0.1, step=0.1, steps=1)


def test_transfer_from_itself_is_the_attack_and_an_ensemble_misleads_every_member() -> None:
    first, images, _ = problem("inf")
    second = linear(seed=0)
    second.weight.data += 0.3 * torch.randn_like(second.weight)
    labels = first(images).argmax(dim=1)

    def attack(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return pgd(network, images, labels, eps=0.1, step=0.02, steps=20, random_start=False)

    assert torch.equal(transfer(first, images, labels, attack=attack), attack(first, images, labels))
    together = transfer([first, second], images, labels, attack=attack)
    alone = transfer([first], images, labels, attack=attack)
    for network in (first, second):
        assert float(margin(network, together, labels).mean()) < float(margin(network, images, labels).mean())
    assert float(margin(second, together, labels).mean()) < float(margin(second, alone, labels).mean())
    with pytest.raises(InputError, match="no source"):
        transfer([], images, labels, attack=attack)


def test_the_unchecked_loop_is_what_pgd_runs() -> None:
    from anp_vs.attacks.pgd import ascend

    network, (images, labels) = digits_network(robust=True), held_out(20)
    public = pgd(network, images, labels, eps=0.1, step=0.03, steps=4, random_start=False)
    assert torch.equal(ascend(network, images, *geometry.box(images, 0.1), labels, 0.03, 4, losses.ce), public)

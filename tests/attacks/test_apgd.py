"""APGD against closed forms, and against what the same number of plain steps reaches."""

import pytest
import torch

from anp_vs.attacks import apgd, pgd
from anp_vs.attacks.geometry import Norm
from anp_vs.errors import InputError
from attacks.small_networks import (
    NORMS,
    accuracy,
    digits_network,
    distances,
    held_out,
    linear,
    lowest_margin,
    margin,
)

EPS = {"inf": 0.012, "2": 0.05, "1": 0.15}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "dlr", "margin"])
def test_a_linear_network_is_broken_exactly_where_its_optimum_is(norm: Norm, loss: str) -> None:
    network, eps = linear(), EPS[norm]
    images = 0.4 + 0.2 * torch.rand(60, 1, 6, 6)
    labels = network(images).argmax(dim=1)
    best = lowest_margin(network, images, labels, eps, norm)
    adversarial = apgd(network, images, labels, eps=eps, norm=norm, steps=60, loss=loss)
    reached = margin(network, adversarial, labels)
    clear = best.abs() > 0.03 * (margin(network, images, labels) - best)
    assert torch.equal((reached < 0)[clear], (best < 0)[clear])
    assert 0 < int((best < 0)[clear].sum()) < int(clear.sum())
    # What is not broken is brought as near to it as can be, within 3 %.
    share = (margin(network, images, labels) - reached) / (margin(network, images, labels) - best)
    assert float(share[best > 0].min()) > 0.97
    assert bool((distances(images, adversarial, norm) <= eps).all())


@pytest.mark.parametrize("norm", NORMS)
def test_it_is_no_weaker_than_plain_steps_and_targets_help(norm: Norm) -> None:
    network, (images, labels) = digits_network(robust=True), held_out(60)
    eps = {"inf": 0.15, "2": 0.8, "1": 4.0}[norm]
    plain = accuracy(network, pgd(network, images, labels, eps=eps, step=eps / 4, steps=30, norm=norm), labels)
    adversarial = apgd(network, images, labels, eps=eps, norm=norm, steps=30)
    targeted = apgd(network, images, labels, eps=eps, norm=norm, steps=30, targets=3)
    assert accuracy(network, adversarial, labels) <= plain + 1 / len(images)  # a random start decides on one
    assert accuracy(network, targeted, labels) <= plain
    assert float(distances(images, targeted, norm).max()) <= eps


def test_accuracy_falls_with_eps_and_steps() -> None:
    network, (images, labels) = digits_network(robust=True), held_out(60)

    def attacked(eps: float, steps: int) -> float:
        generator = torch.Generator().manual_seed(0)
        adversarial = apgd(network, images, labels, eps=eps, steps=steps, generator=generator)
        return accuracy(network, adversarial, labels)

    by_eps = [attacked(eps, 20) for eps in (0.0, 0.05, 0.1, 0.2, 0.4)]
    assert by_eps[0] == accuracy(network, images, labels)
    assert by_eps == sorted(by_eps, reverse=True)
    by_steps = [attacked(0.15, steps) for steps in (1, 5, 30)]
    assert by_steps == sorted(by_steps, reverse=True)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_targets_work_with_few_classes(classes: int) -> None:
    network = linear(classes)
    images = torch.rand(30, 1, 6, 6)
    labels = network(images).argmax(dim=1)
    adversarial = apgd(network, images, labels, eps=0.05, steps=20, targets=9)
    # In the inf-ball the margin to each other class has its own optimum; the worst of them decides.
    slopes = network.weight[labels][:, None] - network.weight[None]
    room = torch.where(slopes > 0, images.flatten(1)[:, None], 1 - images.flatten(1)[:, None]).clamp(max=0.05)
    logits = network(images)
    lowest = logits.gather(1, labels[:, None]) - logits - (slopes.abs() * room).sum(dim=2)
    lowest = lowest.scatter(1, labels[:, None], torch.inf).amin(dim=1)
    clear = lowest.abs() > 0.05
    assert torch.equal((margin(network, adversarial, labels) < 0)[clear], (lowest < 0)[clear])
    assert 0 < int((lowest < 0).sum()) < 30


def test_a_seed_gives_the_same_images_and_arguments_are_checked() -> None:
    network, (images, labels) = digits_network(robust=True), held_out(10)

    def seeded(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return apgd(network, images, labels, eps=0.1, steps=5, generator=generator)

    assert torch.equal(seeded(1), seeded(1))
    assert not torch.equal(seeded(1), seeded(2))
    for bad in ({"eps": -1.0}, {"steps": 0}, {"restarts": 0}, {"draws": 0}, {"targets": -1}, {"loss": "x"}):
        with pytest.raises(InputError):
            apgd(network, images, labels, **({"eps": 0.1} | bad))  # type: ignore[arg-type]

"""FAB against the distance to a linear network's boundary, which is known in closed form."""

import pytest
import torch

from anp_vs.attacks import fab, pgd
from anp_vs.attacks.geometry import Norm
from anp_vs.errors import InputError
from attacks.small_networks import (
    NORMS,
    Rounded,
    accuracy,
    digits_network,
    distances,
    held_out,
    linear,
    lowest_margin,
    margin,
)


@pytest.mark.parametrize("norm", NORMS)
def test_it_breaks_a_linear_network_exactly_where_the_boundary_is_in_the_ball(norm: Norm) -> None:
    network, eps = linear(), {"inf": 0.05, "2": 0.05, "1": 0.5}[norm]
    images = 0.4 + 0.2 * torch.rand(80, 1, 6, 6) if norm == "2" else torch.rand(80, 1, 6, 6)
    labels = network(images).argmax(dim=1)
    best = lowest_margin(network, images, labels, eps, norm)
    adversarial = fab(network, images, labels, eps=eps, norm=norm, steps=30)
    clear = best.abs() > 0.02 * (margin(network, images, labels) - best)
    assert torch.equal((margin(network, adversarial, labels) < 0)[clear], (best < 0)[clear])
    assert 0 < int((best < 0)[clear].sum()) < int(clear.sum())
    assert bool((distances(images, adversarial, norm) <= eps).all())
    whole = margin(network, adversarial, labels) > 0
    assert torch.equal(adversarial[whole], images[whole])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_of_another_precision_are_attacked_as_well(dtype: torch.dtype) -> None:
    network = linear()
    images = torch.rand(40, 1, 6, 6)
    labels = network(images).argmax(dim=1)
    best = lowest_margin(network, images, labels, 0.05, "inf")
    clear = (best.abs() > 0.1) & (margin(network, images, labels) > 0.1)  # half precision rounds by less
    adversarial = fab(Rounded(network, dtype), images, labels, eps=0.05, steps=30)
    assert torch.equal((margin(network, adversarial, labels) < 0)[clear], (best < 0)[clear])
    assert 0 < int((best < 0)[clear].sum()) < int(clear.sum())


@pytest.mark.parametrize("norm", NORMS)
def test_on_a_trained_network_it_is_about_as_strong_as_pgd(norm: Norm) -> None:
    network, (images, labels) = digits_network(robust=True), held_out(60)
    eps = {"inf": 0.15, "2": 0.8, "1": 4.0}[norm]
    plain = accuracy(network, pgd(network, images, labels, eps=eps, step=eps / 4, steps=30, norm=norm), labels)
    adversarial = fab(network, images, labels, eps=eps, norm=norm, steps=30, targets=4)
    assert accuracy(network, adversarial, labels) <= plain + 0.03
    assert float(distances(images, adversarial, norm).max()) <= eps


def test_accuracy_falls_with_eps_and_targets() -> None:
    network, (images, labels) = digits_network(robust=True), held_out(40)

    def attacked(eps: float, targets: int) -> float:
        return accuracy(network, fab(network, images, labels, eps=eps, steps=15, targets=targets), labels)

    by_eps = [attacked(eps, 2) for eps in (0.0, 0.1, 0.2, 0.4)]
    assert by_eps[0] == accuracy(network, images, labels)
    assert by_eps == sorted(by_eps, reverse=True)
    assert attacked(0.15, 3) <= attacked(0.15, 1)


def test_restarts_are_seeded_and_arguments_checked() -> None:
    network, (images, labels) = digits_network(robust=True), held_out(10)
    results = [
        fab(network, images, labels, eps=0.12, steps=5, restarts=2, generator=torch.Generator().manual_seed(4))
        for _ in range(2)
    ]
    assert torch.equal(*results)
    for bad in ({"eps": -1.0}, {"steps": 0}, {"restarts": 0}, {"targets": 0}, {"draws": 0}):
        with pytest.raises(InputError):
            fab(network, images, labels, **({"eps": 0.1} | bad))  # type: ignore[arg-type]

"""A network comes out of an attack as it went in."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from anp_vs.attacks import apgd, autoattack, fab, fgsm, frozen, pgd, square, transfer
from anp_vs.errors import InputError
from attacks.small_networks import digits_network, held_out


def half_trained() -> nn.Module:
    """In training mode but for one part, one parameter fixed, gradients accumulated."""
    network = copy.deepcopy(digits_network(robust=False)).train()
    network[5].eval()  # type: ignore[index]
    network[0].bias.requires_grad_(False)  # type: ignore[index]
    images, labels = held_out(8)
    nn.functional.cross_entropy(network(images), labels).backward()
    return network


def portrait(network: nn.Module) -> list[object]:
    modes = [(name, module.training) for name, module in network.named_modules()]
    flags = [(name, p.requires_grad, p.grad is None) for name, p in network.named_parameters()]
    return [modes, flags]


def tensors(network: nn.Module) -> list[Tensor]:
    grads = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    return [t.clone() for t in network.state_dict().values()] + grads


@pytest.mark.parametrize(
    "attack",
    [
        partial(fgsm, eps=0.1),
        partial(pgd, eps=0.1, step=0.05, steps=3, restarts=2),
        partial(apgd, eps=0.5, steps=5, norm="2", targets=2),
        partial(fab, eps=0.1, steps=3, targets=2),
        partial(square, eps=3.0, queries=10, norm="1"),
        partial(autoattack, eps=0.1, steps=3, queries=5, targets=2),
        partial(transfer, attack=partial(fgsm, eps=0.1)),
    ],
    ids=lambda attack: attack.func.__name__,
)
def test_modes_gradients_and_statistics_are_untouched(
    attack: Callable[[nn.Module, Tensor, Tensor], object],
) -> None:
    network = half_trained()
    before, values = portrait(network), tensors(network)
    images, labels = held_out(8)
    kept = images.clone()
    attack(network, images, labels)
    assert portrait(network) == before
    assert all(torch.equal(a, b) for a, b in zip(tensors(network), values, strict=True))
    assert torch.equal(images, kept)


def test_everything_is_restored_after_an_error_inside() -> None:
    network = half_trained()
    before = portrait(network)

    def fail_inside() -> None:
        with frozen(network) as same:
            assert same is network
            assert not any(module.training for module in network.modules())
            assert not any(p.requires_grad for p in network.parameters())
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert portrait(network) == before


def test_attacks_work_where_gradients_are_off() -> None:
    network, (images, labels) = digits_network(robust=False), held_out(8)
    expected = fgsm(network, images, labels, eps=0.1)
    with torch.no_grad():
        assert torch.equal(fgsm(network, images, labels, eps=0.1), expected)
    with torch.inference_mode(), pytest.raises(InputError, match="no_grad"):
        fgsm(network, images, labels, eps=0.1)

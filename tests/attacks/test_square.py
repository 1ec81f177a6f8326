"""Square Attack: what random search must find on a linear network, and that it sees outputs alone."""

import pytest
import torch
from torch import Tensor, nn

from anp_vs.attacks import square
from anp_vs.attacks.geometry import Norm
from anp_vs.attacks.noise import per_image
from anp_vs.attacks.patterns import Window, whirl, windows
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


def test_in_the_inf_norm_it_finds_the_optimum_of_a_linear_network() -> None:
    network = linear()
    images = torch.rand(20, 1, 6, 6)
    labels = network(images).argmax(dim=1)
    best = lowest_margin(network, images, labels, 0.02, "inf")
    stubborn = best > 0.1  # the others are broken, and left, on the way
    adversarial = square(network, images, labels, eps=0.02, queries=1500)
    assert torch.allclose(margin(network, adversarial, labels)[stubborn].double(), best[stubborn], atol=1e-4)
    assert int(stubborn.sum()) >= 10


class Blind(nn.Module):
    """Refuses to be differentiated, and counts the images that it is shown."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.shown = network, 0

    def forward(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.shown += len(images)
        with torch.no_grad():
            logits: Tensor = self.network(images)
        return logits


@pytest.mark.parametrize("norm", NORMS)
def test_it_needs_no_gradient_and_keeps_to_its_queries_and_the_ball(norm: Norm) -> None:
    eps = {"inf": 0.2, "2": 1.5, "1": 9.0}[norm]
    network, (images, labels) = Blind(digits_network(robust=False)), held_out(40)
    adversarial = square(network, images, labels, eps=eps, norm=norm, queries=300)
    assert network.shown <= 40 * 301  # and the clean images once
    assert accuracy(network, images, labels) - accuracy(network, adversarial, labels) > 0.3
    assert bool((distances(images, adversarial, norm) <= eps).all())
    assert float(adversarial.min()) >= 0
    assert float(adversarial.max()) <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_margins_fall_with_queries_and_eps(norm: Norm) -> None:
    network, (images, labels) = digits_network(robust=True), held_out(15)
    eps = {"inf": 0.1, "2": 0.5, "1": 3.0}[norm]

    def reached(eps: float, queries: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        found = square(network, images, labels, eps=eps, norm=norm, queries=queries, generator=generator)
        return margin(network, found, labels)

    margins = [margin(network, images, labels), *(reached(eps, queries) for queries in (1, 15, 200))]
    assert all(bool((found <= margins[0]).all()) for found in margins)
    whole = margins[-1] > 0  # what is broken is left at once, wherever it is then
    means = [float(found[whole].mean()) for found in margins]
    assert means == sorted(means, reverse=True)
    assert len(set(means)) == 4
    assert int((reached(2 * eps, 15) > 0).sum()) <= int((margins[2] > 0).sum())
    assert torch.equal(reached(0.0, 5), margin(network, images, labels))


def test_what_happens_to_an_image_depends_on_its_own_generator_alone() -> None:
    network = linear()
    images = torch.rand(6, 1, 6, 6)
    labels = network(images).argmax(dim=1)
    together = square(network, images, labels, eps=0.02, queries=150, generator=per_image(0, "square", range(6)))
    alone = square(network, images[3:4], labels[3:4], eps=0.02, queries=150, generator=per_image(0, "square", [3]))
    assert torch.equal(together[3:4], alone)


def test_windows_read_what_they_write_and_nothing_else(generator: torch.Generator) -> None:
    images = torch.rand(40, 2, 5, 7, generator=generator)
    window = windows(images, 3, torch.rand(40, generator=generator), torch.rand(40, generator=generator))
    assert set(window.top.tolist()) == {0, 1, 2}
    assert set(window.left.tolist()) == {0, 1, 2, 3, 4}
    content = torch.rand(40, 2, 3, 3, generator=generator)
    written = window.write(images, content)
    assert torch.equal(window.read(written), content)
    assert torch.equal(written != images, window.mask().expand_as(images))
    assert bool((window.mask().sum(dim=(1, 2, 3)) == 9).all())
    edge = windows(images[:1], 5, torch.tensor([0.0]), torch.tensor([1.0 - 2**-24]))
    assert (edge.top, edge.left) == (torch.tensor([0]), torch.tensor([2]))
    assert isinstance(edge, Window)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8])
def test_the_pattern_of_a_window_has_norm_one_and_two_signs(side: int) -> None:
    for power in (1, 2):
        pattern = whirl(side, power, torch.zeros(1, dtype=torch.float64))
        assert pattern.shape == (side, side)
        assert float(pattern.abs().pow(power).sum()) == pytest.approx(1.0)
        assert bool((pattern[: side // 2] > 0).all())
        assert bool((pattern[side // 2 :] < 0).all())


def test_arguments_outside_their_range_are_refused() -> None:
    network, (images, labels) = digits_network(robust=False), held_out(4)
    for bad in ({"eps": -1.0}, {"queries": 0}, {"share": 0.0}, {"share": 1.1}, {"draws": 0}):
        with pytest.raises(InputError):
            square(network, images, labels, **({"eps": 0.1} | bad))  # type: ignore[arg-type]

"""Interval bounds: exact where they must be, never narrower than what sampling and attacks find."""

import sys
import types

import pytest
import torch
from torch import Tensor, nn

from anp_vs.attacks import pgd
from anp_vs.errors import InputError
from anp_vs.evaluation.intervals import certified
from anp_vs.networks import build
from anp_vs.pruning.bounds import interval_bounds
from anp_vs.pruning.compact import compact
from anp_vs.pruning.gate import gates
from anp_vs.pruning.insertion import insert_gates


def test_one_layer_is_exact() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    images = 0.2 + 0.6 * torch.rand(5, 1, 3, 3)
    with torch.no_grad():
        logits, spread = network(images).double(), 0.1 * network[1].weight.abs().sum(1)  # type: ignore[operator, union-attr]
    found = interval_bounds(network, images, 0.1)
    torch.testing.assert_close(found.lower, logits - spread, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.upper, logits + spread, rtol=0, atol=1e-5)
    # With one layer the certificate is not only safe but tight: it holds where the worst corner is right.
    labels = logits.argmax(1)
    weight = network[1].weight.double()  # type: ignore[union-attr, operator]
    margins = logits.gather(1, labels[:, None]) - logits
    worst = margins - 0.1 * (weight[labels][:, None] - weight).abs().sum(2)
    worst.scatter_(1, labels[:, None], 1.0)
    assert certified(network, images, labels, 0.1).tolist() == (worst > 0).all(1).tolist()


@pytest.mark.parametrize("name", ["lenet5-caffe", "vgg16"])
def test_bounds_hold_for_random_points_of_the_ball_and_meet_at_eps_zero(name: str) -> None:
    network = insert_gates(build(name)).eval()
    with torch.no_grad():
        for gate in gates(network).values():
            gate.a_uc[12:] = -9.0
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.weight.uniform_(-1, 1)
                module.running_mean.normal_()  # type: ignore[union-attr]
    small = compact(network)
    images = torch.rand(1, *network.input_shape)  # type: ignore[misc]
    with torch.no_grad():
        logits = small(images).double()
        exact = interval_bounds(small, images, 0.0)
        torch.testing.assert_close(exact.lower, exact.upper)
        torch.testing.assert_close(exact.lower, logits, rtol=1e-4, atol=1e-4)
        found = interval_bounds(small, images, 0.02)
        for _ in range(4):
            near = (images + 0.02 * torch.randn_like(images).sign()).clamp(0, 1)
            moved = small(near).double()
            assert (moved >= found.lower - 1e-4).all()
            assert (moved <= found.upper + 1e-4).all()
        if name == "vgg16":
            return  # at full width it takes seconds
        gated = interval_bounds(network, images, 0.02)
    torch.testing.assert_close(gated.lower, found.lower, rtol=1e-3, atol=1e-3)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.last = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.conv(images)) + images
        return self.last(features.view(features.size(0), -1))  # type: ignore[no-any-return]


def test_no_attack_breaks_what_is_certified() -> None:
    network = Residual()
    images = torch.rand(200, 1, 4, 4)
    labels = network(images).argmax(1)
    proven = certified(network, images, labels, 0.02)
    assert 0.05 < proven.double().mean() < 1
    attacked = pgd(network, images, labels, eps=0.02, step=0.01, steps=10, restarts=3)
    assert (network(attacked).argmax(1) == labels)[proven].all()
    wrong = (labels + 1) % 3
    assert not certified(network, images, wrong, 0.0).any()
    assert certified(network, images, labels, 0.0).all()


class Product(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return flat * flat


def test_what_cannot_be_bounded_is_refused() -> None:
    with pytest.raises(InputError, match="mul"):
        interval_bounds(Product(), torch.rand(1, 1, 2, 2), 0.1)
    with pytest.raises(InputError, match="Softmax"):
        interval_bounds(nn.Sequential(nn.Flatten(), nn.Softmax(1)), torch.rand(1, 1, 2, 2), 0.1)
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        interval_bounds(Residual(), 3 * torch.ones(1, 1, 4, 4), 0.1)
    with pytest.raises(InputError, match="method"):
        certified(Residual(), torch.rand(1, 1, 4, 4), torch.tensor([0]), 0.1, method="zonotope")  # type: ignore[arg-type]


def test_crown_asks_for_differences_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto_LiRPA's interface, played by a stand-in that is exact for a linear network."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    images, labels = 0.2 + 0.6 * torch.rand(6, 1, 3, 3), torch.arange(6) % 3

    class Bounded:
        def __init__(self, network: nn.Module, example: Tensor) -> None:
            self.layer = network[1]  # type: ignore[index]

        def compute_bounds(self, x: tuple[Tensor], C: Tensor, method: str) -> tuple[Tensor, None]:
            assert method == "CROWN"
            lower, upper = (side.flatten(1)[:, :, None] for side in x[0])
            weight = C @ self.layer.weight
            least = weight.clamp(min=0) @ lower + weight.clamp(max=0) @ upper
            return (least.squeeze(2) + C @ self.layer.bias).detach(), None

    stand_in = types.ModuleType("auto_LiRPA")
    stand_in.BoundedModule = Bounded  # type: ignore[attr-defined]
    stand_in.PerturbationLpNorm = lambda norm, eps, x_L, x_U: (x_L, x_U)  # type: ignore[attr-defined]
    stand_in.BoundedTensor = lambda images, ball: ball  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "auto_LiRPA", stand_in)
    expected = certified(network, images, labels, 0.05)
    assert certified(network, images, labels, 0.05, method="crown").tolist() == expected.tolist()
    monkeypatch.setitem(sys.modules, "auto_LiRPA", None)
    with pytest.raises(InputError, match="auto_LiRPA"):
        certified(network, images, labels, 0.05, method="crown")


def test_a_weighted_sum_is_refused_for_its_weight_may_be_negative() -> None:
    class Difference(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            flat = images.flatten(1)
            return torch.add(flat[:, :2], flat[:, 2:], alpha=-1)

    with pytest.raises(InputError, match="add"):
        interval_bounds(Difference(), torch.full((1, 1, 2, 2), 0.5), 0.1)


@pytest.mark.parametrize(
    "layer",
    [nn.LeakyReLU(-0.2), nn.ELU(-0.5), nn.BatchNorm2d(3, track_running_stats=False)],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_that_falls_or_looks_at_its_batch_has_no_bounds(layer: nn.Module) -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 3), layer, nn.Flatten(), nn.Linear(12, 2)).eval()
    with pytest.raises(InputError, match=type(layer).__name__):
        interval_bounds(network, torch.rand(1, 1, 4, 4), 0.1)

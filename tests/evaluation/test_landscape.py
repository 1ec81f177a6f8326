"""The data of the figures on networks whose features and losses are known."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anp_vs.errors import InputError
from anp_vs.evaluation.landscape import feature_maps, histograms, loss_surface
from anp_vs.evaluation.vulnerability import vulnerability
from anp_vs.networks import build
from anp_vs.pruning.gate import gates
from anp_vs.pruning.insertion import insert_gates
from anp_vs.pruning.shrinking import shrink


def test_histograms_count_every_unit_and_mark_the_zeros() -> None:
    gated = insert_gates(build("lenet5-caffe")).eval()
    with torch.no_grad():
        for gate in gates(gated).values():
            gate.a_uc[::2] = -9.0
    small = copy.deepcopy(gated)
    shrink(small, {path: ~gate.alive() for path, gate in gates(gated).items()})
    clean = torch.rand(6, 1, 28, 28)
    adversarial = (clean + 0.1 * torch.randn_like(clean)).clamp(0, 1)
    before, after = (histograms(vulnerability(n, clean, adversarial), bins=10) for n in (gated, small))
    for left, right in zip(before, after, strict=True):
        assert left.zeros >= left.units / 2
        assert sum(left.counts) + left.zeros == left.units
        assert (left.zeros, left.units, left.counts) == (right.zeros, right.units, right.counts)
        assert left.edges == pytest.approx(before[0].edges)
    found = vulnerability(gated, clean, adversarial)
    largest = max(float(layer.units.max()) for layer in found.layers)
    assert before[0].edges[-1] == pytest.approx(largest)
    low, high = before[0].edges[3:5]
    for layer, histogram in zip(found.layers, before, strict=True):
        assert int(((layer.units > low) & (layer.units <= high)).sum()) == histogram.counts[3]


class Convolution(nn.Module):
    latents = ("conv",)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).mean(dim=(2, 3))  # type: ignore[no-any-return]


def test_feature_maps_of_a_1x1_convolution() -> None:
    network = Convolution().train()
    clean, adversarial = torch.rand(3, 1, 4, 4), torch.rand(3, 1, 4, 4)
    maps = feature_maps(network, clean, adversarial)
    weight = network.conv.weight.detach().view(1, 2, 1, 1)
    moved = (weight * (adversarial - clean)).abs()
    torch.testing.assert_close(maps.clean, weight * clean + network.conv.bias.detach().view(1, 2, 1, 1))  # type: ignore[union-attr]
    torch.testing.assert_close(maps.adversarial - maps.clean, weight * (adversarial - clean))
    torch.testing.assert_close(maps.distortion, moved.mean(0))
    assert network.training
    with pytest.raises(InputError, match="latent layer"):
        feature_maps(network, clean, adversarial, "fc9")
    with pytest.raises(InputError, match="shape"):
        feature_maps(network, clean, adversarial[:1])


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
def test_the_loss_surface_of_a_linear_network(norm: str) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    images, labels = 0.4 + 0.2 * torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 0, 1, 1])
    found = loss_surface(network, images, labels, eps=0.05, norm=norm, points=5, reach=2.0)  # type: ignore[arg-type]
    assert found.along == (-2.0, -1.0, 0.0, 1.0, 2.0)
    with torch.no_grad():
        logits = network(images)
        assert float(found.loss[2, 2]) == pytest.approx(float(F.cross_entropy(logits, labels)))
        assert float(found.accuracy[2, 2]) == pytest.approx(100 * float((logits.argmax(1) == labels).double().mean()))
        weight = network[1].weight[1] - network[1].weight[0]  # type: ignore[index]
    # A step of length t eps against the label raises the other logit by t eps times the dual norm.
    dual = float(weight.norm(p={"inf": 1, "2": 2, "1": torch.inf}[norm]))
    margin = (logits[:, 1] - logits[:, 0]) * (1 - 2 * labels)
    for row, t in enumerate(found.along):
        expected = F.softplus(margin + t * 0.05 * dual).mean()
        assert float(found.loss[row, 2]) == pytest.approx(float(expected), rel=1e-4)
    assert (found.loss[1:, 2] > found.loss[:-1, 2]).all()
    assert torch.equal(found.loss, loss_surface(network, images, labels, eps=0.05, norm=norm, points=5).loss)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"points": 4}, {"points": 1}, {"reach": 0.0}, {"eps": 0.0}])
def test_bad_grids_are_refused(options: dict[str, float]) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(InputError):
        loss_surface(network, torch.rand(1, 1, 2, 2), torch.tensor([0]), **{"eps": 0.1, **options})  # type: ignore[arg-type]

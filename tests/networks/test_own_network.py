"""Networks of a user's own: registered, trained with channels leaving, resumed, saved, loaded."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anp_vs import InputError, load, save
from anp_vs.networks import NETWORKS, build, register
from anp_vs.networks.images import declared_shape, take_images
from anp_vs.networks.preact import PreActResNet18
from anp_vs.networks.resnet import ResNet18


class Own(nn.Module):
    """Residual, declares nothing; any height and width of images with one channel."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.one, self.norm, self.two = nn.Conv2d(6, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, 1, 1)
        self.act, self.fc = nn.GELU(), nn.Linear(6, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = self.act(x + self.two(self.act(self.norm(self.one(x)))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(NETWORKS, "own-network", lambda classes: Own(classes))
    return "own-network"


def test_a_registered_network_loads_by_its_name(own: str, tmp_path: Path) -> None:
    network = build(own, 4).eval()
    take_images(network, (1, 20, 24))
    again = load(save(network, tmp_path / "net"))
    assert again.input_shape == (1, 20, 24)
    images = torch.rand(2, 1, 20, 24)
    with torch.no_grad():
        assert torch.equal(network(images), again(images))


def test_looking_at_a_network_leaves_each_modules_mode() -> None:
    network = Own(4).train()
    network.norm.eval()  # frozen, say
    modes = {name: module.training for name, module in network.named_modules()}
    take_images(network, (1, 20, 24))
    assert {name: module.training for name, module in network.named_modules()} == modes


def test_names_are_taken_once_and_are_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "mine", Own)
    register("mine", Own)
    with pytest.raises(InputError, match="'vgg16' already"):
        register("vgg16", Own)
    with pytest.raises(InputError, match="'a b'"):
        register("a b", Own)
    with pytest.raises(InputError, match=r"'\.\./up'"):
        register("../up", Own)


def test_images_that_a_network_does_not_take_are_refused_with_the_remedy() -> None:
    network = ResNet18(3, width=2).train()
    take_images(network, (3, 48, 40))
    assert network.input_shape == (3, 48, 40)
    assert network.training
    with pytest.raises(InputError, match=r"2 x 28 x 28.*pictures\.colour"):
        take_images(network, (2, 28, 28))
    with pytest.raises(InputError, match=r"takes images of 1 x 28 x 28, but .* 1 x 32 x 32"):
        take_images(build("lenet5-caffe"), (1, 32, 32))
    assert declared_shape([3, 32, 32]) == (3, 32, 32)
    assert [declared_shape(v) for v in (None, [3, 32], [3, 32, 10**9], [3, True, 3], "abc")] == [None] * 5


def test_residual_networks_are_what_build_makes() -> None:
    assert isinstance(build("resnet18", 3), ResNet18)
    assert isinstance(build("preactresnet18", 3), PreActResNet18)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_images_that_are_no_floating_point_numbers_are_refused(name: str) -> None:
    if name == "wideresnet28-10":
        pytest.skip("as wideresnet28-4, and large")
    network = build(name).eval()
    images = torch.randint(0, 256, (2, *network.input_shape), dtype=torch.uint8)  # type: ignore[misc]
    with pytest.raises(InputError, match=r"images are torch\.uint8.*float\(\) / 255"):
        network(images)
    traced = torch.fx.symbolic_trace(network)
    torch.testing.assert_close(traced(images / 255), network(images / 255))

"""bfloat16 behind the first layer: what it keeps, and that an attack loses nothing by it."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anp_vs.attacks import geometry
from anp_vs.attacks.losses import ce
from anp_vs.attacks.pgd import ascend
from anp_vs.data import load
from anp_vs.methods import ANPVS
from anp_vs.networks import build
from anp_vs.pruning.graph import Graph, example_for
from anp_vs.pruning.insertion import insert_gates
from anp_vs.pruning.precision import lowered, on_pixels
from anp_vs.pruning.twin import Twin

EPS = 0.1


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """LeNet after a little adversarial training on digits, and all 1,797 digits."""
    torch.manual_seed(0)
    data = load("digits")
    parts = (data.train, data.validation, data.test)
    images = torch.cat([part.images for part in parts]).float() / 255
    labels = torch.cat([part.labels for part in parts])
    network = build("lenet5-caffe")
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(60):
        chosen = torch.randint(len(images), (64,))
        x, y = images[chosen], labels[chosen]
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(network(x), y), x)
        x = (x + EPS * gradient.sign()).clamp(0, 1).detach()
        optimiser.zero_grad()
        functional.cross_entropy(network(x), y).backward()
        optimiser.step()
    return network.eval(), images, labels


def accuracy_under(maker: nn.Module, network: nn.Module, images: Tensor, labels: Tensor) -> float:
    lower, upper = geometry.box(images, EPS)
    draws = torch.Generator().manual_seed(1)
    start = torch.clamp(images + torch.empty_like(images).uniform_(-EPS, EPS, generator=draws), lower, upper)
    attacked = ascend(maker, start, lower, upper, labels, EPS / 4, 8, ce)
    assert attacked.dtype == torch.float32
    with torch.no_grad():
        return 100 * float((network(attacked).argmax(1) == labels).float().mean())


def test_the_attack_is_as_strong_as_in_float32(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    network, images, labels = trained
    plain = Twin(network, example_for(network)).build()
    low = Twin(network, example_for(network), precision="bfloat16").build()
    with torch.no_grad():
        clean = 100 * float((network(images).argmax(1) == labels).float().mean())
    under = accuracy_under(plain, network, images, labels)
    assert clean - under > 20, "the attack must do something, or nothing is compared"
    assert accuracy_under(low, network, images, labels) <= under + 0.2


def test_changes_too_small_for_bfloat16_pixels_still_pass(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    network, images, _ = trained
    low = Twin(network, example_for(network), precision="bfloat16").build()
    bright = torch.full_like(images[:8], 0.8984375)
    # bfloat16 has steps of 1/256 around this one of its values: an eighth of a step would be rounded away.
    assert torch.equal((bright + 1 / 2048).bfloat16(), bright.bfloat16())
    seen: list[Tensor] = []
    first = next(m for m in low.modules() if "weight" in m._buffers and m._buffers["weight"].dim() == 4)
    handle = first.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        low(bright)
        low(bright + 1 / 2048)
    handle.remove()
    assert seen[0].dtype == torch.float32
    assert (seen[0] - seen[1]).abs().min() > 0
    assert low(bright).dtype == torch.float32


@pytest.mark.parametrize("name", ["lenet5-caffe", "vgg16", "preactresnet18"])
def test_the_twin_s_logits_are_those_of_float32_to_bfloat16_s_precision(name: str) -> None:
    torch.manual_seed(0)
    network = build(name)
    insert_gates(network)
    network.eval()
    example = example_for(network)
    images = torch.rand_like(example)
    with torch.no_grad():
        exact = network(images)
        low = Twin(network, example, precision="bfloat16").build()(images)
    assert low.dtype == torch.float32
    assert (low - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("name", ["lenet5-caffe", "vgg16"])
def test_gradients_of_a_training_pass_point_the_same_way_and_nothing_is_left_behind(name: str) -> None:
    torch.manual_seed(0)
    network = build(name)
    insert_gates(network)
    network.train()
    images = torch.rand(16, *network.input_shape)  # type: ignore[misc]
    labels = torch.arange(16) % 10
    first = on_pixels(Graph(network, example_for(network)).points)[1]
    assert len(first) == 1
    weights = [p for n, p in network.named_parameters() if "_uc" not in n]
    gradients = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(1)
        with lowered(network, first, precision):  # type: ignore[arg-type]
            loss = ANPVS().objective(network, images, (images + 0.02).clamp(0, 1), labels, 100).weights
        assert loss.dtype == torch.float32
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
        assert all(g.dtype == torch.float32 for g in gradients)
    assert functional.cosine_similarity(*gradients, dim=0) > 0.9
    assert all("forward" not in vars(module) for module in network.modules())
    assert network(images).dtype == torch.float32


class Standardised(nn.Conv2d):
    """A convolution whose weight is computed in each pass."""

    def forward(self, images: Tensor) -> Tensor:
        """Convolve with weights of mean 0."""
        return functional.conv2d(images, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


@pytest.mark.parametrize("stem", ["weight_norm", "subclass"])
def test_a_first_layer_whose_weight_is_computed_stays_float32_with_all_that_it_holds(stem: str) -> None:
    torch.manual_seed(0)
    conv = Standardised(1, 6, 3) if stem == "subclass" else nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 6, 3))
    network = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)).eval()
    images = torch.rand(2, 1, 8, 8)
    low = Twin(network, images, precision="bfloat16").build()
    with torch.no_grad():
        torch.testing.assert_close(Twin(network, images).build()(images), network(images))
        torch.testing.assert_close(low(images), network(images), rtol=0.05, atol=0.02)
    kinds: list[torch.dtype] = []
    first = on_pixels(Graph(network, images).points)[1]
    conv.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    with lowered(network, first, "bfloat16"):
        network(images)
    assert kinds == [torch.float32]


class Bare(nn.Module):
    """A network that holds the weights of its first layer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.offset = nn.Parameter(torch.rand(4, 1, 3, 3)), nn.Parameter(torch.rand(1))
        self.act, self.fc = nn.ReLU(), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        mixed = functional.conv2d(images - self.offset, self.weight)
        return self.fc(self.act(mixed).mean((2, 3)))  # type: ignore[no-any-return]


def test_a_network_that_holds_its_first_weights_itself_stays_float32() -> None:
    network, images = Bare().eval(), torch.rand(2, 1, 8, 8)
    assert on_pixels(Graph(network, images).points)[1] == {""}
    low = Twin(network, images, precision="bfloat16").build()
    with torch.no_grad():
        wanted = network(images)
        torch.testing.assert_close(low(images), wanted)
        with lowered(network, {""}, "bfloat16"):
            torch.testing.assert_close(network(images), wanted)

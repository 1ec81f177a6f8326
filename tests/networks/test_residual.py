"""The residual networks: the published sizes, and the function of their own equations."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anp_vs.errors import InputError
from anp_vs.networks import NETWORKS, build
from anp_vs.networks.latents import latent_paths, recorded
from anp_vs.networks.preact import PreActResNet18, WideResNet
from anp_vs.networks.resnet import ResNet18
from anp_vs.pruning.gate import gates
from anp_vs.pruning.insertion import insert_gates

SIZES = {
    "resnet18": 11_173_962,
    "preactresnet18": 11_172_170,
    "wideresnet28-10": 36_479_194,
}
"""Parameters with ten classes, as the robustness literature counts them."""


def wide_size(depth: int, widening: int, classes: int) -> int:
    """Parameters of WRN-depth-widening, added up from the architecture's table."""
    blocks, total, inputs = (depth - 4) // 6, 3 * 16 * 9, 16
    for base in (16, 32, 64):
        outputs = base * widening
        for _ in range(blocks):
            total += 2 * inputs + 9 * inputs * outputs + 2 * outputs + 9 * outputs * outputs
            total += inputs * outputs if inputs != outputs else 0
            inputs = outputs
    return total + 2 * inputs + classes * (inputs + 1)


@pytest.mark.parametrize("name", [*SIZES, "wideresnet28-4"])
def test_the_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        network = build(name)
    expected = SIZES.get(name) or wide_size(28, 4, 10)
    assert sum(p.numel() for p in network.parameters()) == expected
    assert wide_size(28, 10, 10) == SIZES["wideresnet28-10"]


def batch_norm(x: Tensor, layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.BatchNorm2d)
    return functional.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)


def test_resnet_is_relu_of_residual_plus_shortcut() -> None:
    network = ResNet18(4, width=2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.3)).double().eval()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    shift = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    scale = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    x = functional.conv2d((images - shift) / scale, network.conv1.weight, padding=1)
    x = functional.relu(batch_norm(x, network.bn1))
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in stage:
            stride = 2 if stage is not network.layer1 and block is stage[0] else 1
            inner = functional.conv2d(x, block.conv1.weight, stride=stride, padding=1)
            inner = functional.relu(batch_norm(inner, block.bn1))
            inner = batch_norm(functional.conv2d(inner, block.conv2.weight, padding=1), block.bn2)
            if stride == 2:
                x = batch_norm(functional.conv2d(x, block.shortcut[0].weight, stride=2), block.shortcut[1])
            x = functional.relu(inner + x)
    assert x.shape == (2, 16, 4, 4)
    logits = functional.linear(x.mean((2, 3)), network.fc.weight, network.fc.bias)
    torch.testing.assert_close(network(images), logits, rtol=1e-6, atol=1e-8)  # mean and std are float32


@pytest.mark.parametrize("network", [PreActResNet18(4, width=2), WideResNet(4, depth=16, widening=1)])
def test_preactivation_is_residual_of_the_activation_plus_shortcut(network: nn.Module) -> None:
    network = network.double().eval()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    x = functional.conv2d(network.get_submodule("normalize")(images), network.get_parameter("conv1.weight"), padding=1)
    stages = network.get_submodule("stages")
    for number, stage in enumerate(stages.children()):
        for place, block in enumerate(stage.children()):
            stride = 2 if number > 0 and place == 0 else 1
            active = functional.relu(batch_norm(x, block.get_submodule("bn1")))
            inner = functional.conv2d(active, block.get_parameter("conv1.weight"), stride=stride, padding=1)
            inner = functional.relu(batch_norm(inner, block.get_submodule("bn2")))
            inner = functional.conv2d(inner, block.get_parameter("conv2.weight"), padding=1)
            if stride == 2:
                x = functional.conv2d(active, block.get_parameter("shortcut.weight"), stride=2)
            x = inner + x
    x = functional.relu(batch_norm(x, network.get_submodule("bn"))).mean((2, 3))
    logits = functional.linear(x, network.get_parameter("fc.weight"), network.get_parameter("fc.bias"))
    torch.testing.assert_close(network(images), logits, rtol=1e-9, atol=1e-10)


def test_a_depth_that_no_wide_resnet_has_is_refused() -> None:
    with pytest.raises(InputError, match=r"6 n \+ 4.*got 27"):
        WideResNet(10, depth=27)


@pytest.mark.parametrize("name", ["resnet18", "preactresnet18", "wideresnet28-4"])
def test_gates_close_inner_channels_and_latents_are_behind_them(name: str) -> None:
    with torch.device("meta"):
        full = build(name)
    small = {
        "resnet18": lambda: ResNet18(width=4),
        "preactresnet18": lambda: PreActResNet18(width=4),
        "wideresnet28-4": lambda: WideResNet(widening=1),
    }[name]()
    assert latent_paths(small) == latent_paths(full)
    insert_gates(small.eval())
    found = gates(small)
    assert len(found) == {"resnet18": 8, "preactresnet18": 8, "wideresnet28-4": 12}[name]
    for gate in found.values():
        torch.nn.init.constant_(gate.a_uc[: gate.units // 2].detach(), -9.0)
    with recorded(small) as features, torch.no_grad():
        small(torch.rand(2, 3, 32, 32))
    assert set(features) == set(latent_paths(small))
    assert all(bool((value >= 0).all()) for value in features.values())
    for path, gate in found.items():
        assert not bool(features[path][:, : gate.units // 2].any())
        assert bool(features[path][:, gate.units // 2 :].any())


def test_unknown_names_and_too_few_classes_are_refused() -> None:
    with pytest.raises(InputError, match=r"'resnet'.*resnet18.*wideresnet28-10"):
        build("resnet")
    with pytest.raises(InputError, match="at least 2 classes, got 1"):
        build("resnet18", 1)
    assert {"resnet18", "preactresnet18", "wideresnet28-4", "wideresnet28-10"} <= set(NETWORKS)

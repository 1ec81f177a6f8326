"""ResNet-18 in its CIFAR form."""

from __future__ import annotations

from torch import Tensor, nn

from anp_vs.networks.layers import Normalize
from anp_vs.networks.vgg import CIFAR_MEAN, CIFAR_STD

GATE_A = 2.0
"""Initial a_uc of the gates on convolutions, as published for VGG-16: E[pi] = 0.68."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: relu(f(x) + shortcut(x)).

    The slot `gate1` gates the channels between the two convolutions; what the addition joins stays whole.

    Args:
        inputs, outputs: channels.
        stride: of the first convolution and the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.gate1 = nn.Identity()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))
        self.relu2 = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """N x inputs x H x W to N x outputs x H / stride x W / stride."""
        inner = self.gate1(self.relu1(self.bn1(self.conv1(features))))
        joined: Tensor = self.relu2(self.bn2(self.conv2(inner)) + self.shortcut(features))
        return joined


class ResNet18(nn.Module):
    """ResNet-18 for 32 x 32 images: a 3x3 stem without pooling (11,173,962 parameters with 10 classes).

    Source: He et al. 2016 (arXiv 1512.03385), in the form the robustness literature uses on CIFAR.

    Args:
        classes: number of logits.
        width: channels of the first stage; doubled by each of the three others.
        mean, std: of the training images per channel; normalisation is part of the network.

    Attributes:
        latents: after the stem's ReLU, after the gate and after the last ReLU of every block.
        gate_sites: slot -> (units, initial a_uc).
    """

    input_shape = (3, 32, 32)
    latents: tuple[str, ...]
    gate_sites: dict[str, tuple[int, float]]

    def __init__(
        self,
        classes: int = 10,
        width: int = 64,
        mean: tuple[float, ...] = CIFAR_MEAN,
        std: tuple[float, ...] = CIFAR_STD,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        stages, inputs = [], width
        for stage, outputs in enumerate((width, 2 * width, 4 * width, 8 * width)):
            first = BasicBlock(inputs, outputs, 1 if stage == 0 else 2)
            stages.append(nn.Sequential(first, BasicBlock(outputs, outputs, 1)))
            inputs = outputs
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(inputs, classes)
        blocks = {name: m for name, m in self.named_modules() if isinstance(m, BasicBlock)}
        self.latents = ("relu1", *(f"{name}.{leaf}" for name in blocks for leaf in ("gate1", "relu2")))
        self.gate_sites = {f"{name}.gate1": (b.conv1.out_channels, GATE_A) for name, b in blocks.items()}
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images N x 3 x 32 x 32 in [0, 1] to logits N x classes."""
        x = self.relu1(self.bn1(self.conv1(self.normalize(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.flatten(self.pool(x)))
        return logits


def initialise(network: nn.Module) -> None:
    """He initialisation of all convolutions, by their fan out, and biases of dense layers at zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

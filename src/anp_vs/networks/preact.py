"""Networks of pre-activation residual blocks: PreActResNet-18 and Wide ResNets, in their CIFAR form."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from anp_vs.errors import InputError
from anp_vs.networks.layers import Normalize
from anp_vs.networks.resnet import GATE_A, initialise
from anp_vs.networks.vgg import CIFAR_MEAN, CIFAR_STD


class PreActBlock(nn.Module):
    """Normalisation and ReLU before each of two 3x3 convolutions: shortcut(x) + f(x).

    The slot `gate2` gates the channels between the two convolutions; what the addition joins stays whole.

    Args:
        inputs, outputs: channels.
        stride: of the first convolution and of the shortcut, which is a 1x1 convolution of the activation
            where the shape changes, else the input itself.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.gate2 = nn.Identity()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """N x inputs x H x W to N x outputs x H / stride x W / stride."""
        active = self.relu1(self.bn1(features))
        passed = features if self.shortcut is None else self.shortcut(active)
        joined: Tensor = self.conv2(self.gate2(self.relu2(self.bn2(self.conv1(active))))) + passed
        return joined


class PreActNet(nn.Module):
    """A stem, stages of pre-activation blocks, a last normalisation and ReLU, global pooling, a dense layer.

    Args:
        classes: number of logits.
        stem: channels of the stem.
        widths: channels of each stage; every stage but the first halves height and width.
        blocks: per stage.
        mean, std: of the training images per channel; normalisation is part of the network.

    Attributes:
        latents: after the first ReLU and the gate of every block, and after the last ReLU.
        gate_sites: slot -> (units, initial a_uc).
    """

    input_shape = (3, 32, 32)
    latents: tuple[str, ...]
    gate_sites: dict[str, tuple[int, float]]

    def __init__(
        self,
        classes: int,
        stem: int,
        widths: Sequence[int],
        blocks: int,
        mean: tuple[float, ...] = CIFAR_MEAN,
        std: tuple[float, ...] = CIFAR_STD,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        stages, inputs = [], stem
        for stage, outputs in enumerate(widths):
            first = PreActBlock(inputs, outputs, 1 if stage == 0 else 2)
            stages.append(nn.Sequential(first, *(PreActBlock(outputs, outputs, 1) for _ in range(blocks - 1))))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(inputs, classes)
        found = {name: m for name, m in self.named_modules() if isinstance(m, PreActBlock)}
        self.latents = (*(f"{name}.{leaf}" for name in found for leaf in ("relu1", "gate2")), "relu")
        self.gate_sites = {f"{name}.gate2": (b.conv1.out_channels, GATE_A) for name, b in found.items()}
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images N x 3 x 32 x 32 in [0, 1] to logits N x classes."""
        x = self.relu(self.bn(self.stages(self.conv1(self.normalize(images)))))
        logits: Tensor = self.fc(self.flatten(self.pool(x)))
        return logits


class PreActResNet18(PreActNet):
    """PreActResNet-18 for 32 x 32 images (11,172,170 parameters with 10 classes).

    Source: He et al. 2016 (arXiv 1603.05027), with their last normalisation.

    Args:
        classes: number of logits.
        width: channels of the first stage; doubled by each of the three others.
    """

    def __init__(self, classes: int = 10, width: int = 64) -> None:
        super().__init__(classes, width, (width, 2 * width, 4 * width, 8 * width), 2)


class WideResNet(PreActNet):
    """WRN-depth-widening for 32 x 32 images, without dropout.

    Source: Zagoruyko, Komodakis 2016 (arXiv 1605.07146).

    Args:
        classes: number of logits.
        depth: 6 n + 4 for n blocks a stage.
        widening: factor of the 16, 32 and 64 channels of the stages.

    Raises:
        InputError: for a depth that is not 6 n + 4.
    """

    def __init__(self, classes: int = 10, depth: int = 28, widening: int = 10) -> None:
        if depth < 10 or depth % 6 != 4:
            raise InputError(f"The depth of a Wide ResNet is 6 n + 4, at least 10, got {depth}; try 28.")
        super().__init__(classes, 16, [16 * widening, 32 * widening, 64 * widening], (depth - 4) // 6)


class WideResNet28x4(WideResNet):
    """WRN-28-4 (5,849,050 parameters with 10 classes)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(classes, 28, 4)


class WideResNet28x10(WideResNet):
    """WRN-28-10 (36,479,194 parameters with 10 classes)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(classes, 28, 10)

"""VGG-16 with batch normalisation, the CIFAR network of the published tables."""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

from torch import Tensor, nn

from anp_vs.networks.layers import Dropout, Normalize, Standardise

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
POOL_AFTER = {2, 4, 7, 10, 13}
DROPOUT_AFTER = {1: 0.3, 3: 0.4, 5: 0.4, 6: 0.4, 8: 0.4, 9: 0.4, 11: 0.4, 12: 0.4}
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)


class VGG16(nn.Module):
    """VGG-16 for 32 x 32 images (14,991,946 parameters with 10 classes).

    Thirteen 3x3 convolutions, each with batch normalisation and ReLU, then a dense layer of 512 with the
    same, then the logits. A gate follows each ReLU (slots `gate1` .. `gate14`), so that a pruned channel is
    exactly zero; the released code gates before batch normalisation, where it would be a constant instead.
    The 512 outputs of the last convolution and the 512 inputs of the dense layer are one axis and one gate.

    Args:
        classes: number of logits.
        mean, std: of the training images per channel; normalisation is part of the network.
    """

    input_shape = (3, 32, 32)
    latents = (*(f"features.gate{i}" for i in range(1, 14)), "fc1", "gate14")
    gate_sites: ClassVar[dict[str, tuple[int, float]]] = {
        **{f"features.gate{i}": (width, 2.0) for i, width in enumerate(WIDTHS, 1)},
        "gate14": (512, -1.0),
    }
    dropped_by_gates = ("dropout13", "dropout14")
    """Dense dropout is only used without gates."""

    def __init__(
        self,
        classes: int = 10,
        mean: tuple[float, ...] = CIFAR_MEAN,
        std: tuple[float, ...] = CIFAR_STD,
    ) -> None:
        super().__init__()
        self.normalize: nn.Module = Normalize(mean, std)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        width = 3
        for i, out in enumerate(WIDTHS, 1):
            layers[f"conv{i}"] = nn.Conv2d(width, out, 3, padding=1)
            layers[f"bn{i}"] = nn.BatchNorm2d(out, eps=1e-3)
            layers[f"relu{i}"] = nn.ReLU()
            layers[f"gate{i}"] = nn.Identity()
            if i in DROPOUT_AFTER:
                layers[f"dropout{i}"] = Dropout(DROPOUT_AFTER[i])
            if i in POOL_AFTER:
                layers[f"pool{i}"] = nn.MaxPool2d(2)
            width = out
        self.features = nn.Sequential(layers)
        self.flatten = nn.Flatten()
        self.dropout13 = Dropout(0.5)
        self.fc1 = nn.Linear(512, 512)
        self.bn14 = nn.BatchNorm1d(512, eps=1e-3)
        self.relu14 = nn.ReLU()
        self.gate14 = nn.Identity()
        self.dropout14 = Dropout(0.5)
        self.fc2 = nn.Linear(512, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images N x 3 x 32 x 32 in [0, 1] to logits N x classes."""
        x = self.dropout13(self.flatten(self.features(self.normalize(images))))
        x = self.dropout14(self.gate14(self.relu14(self.bn14(self.fc1(x)))))
        logits: Tensor = self.fc2(x)
        return logits


class StandardisedVGG16(VGG16):
    """VGG-16 as the released code has it: each image is standardised by itself, not by the data set's mean and deviation.

    Args:
        classes: number of logits.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__(classes)
        self.normalize = Standardise()

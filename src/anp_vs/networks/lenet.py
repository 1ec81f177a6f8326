"""LeNet-5-Caffe, the MNIST network of the published tables."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from anp_vs.networks.layers import Normalize


class LeNet(nn.Module):
    """LeNet-5-Caffe: conv 20@5x5, pool, conv 50@5x5, pool, dense 500, dense classes (431,080 parameters).

    Every `gate*` is a slot: an identity until `anp_vs.insert_gates` puts a gate there. A gate follows the
    activation, so a pruned unit is exactly zero. The third slot gates the flattened inputs of the dense
    layer one by one, as the released code does (20 + 50 + 800 + 500 = 1370 units).

    Args:
        classes: number of logits.
        channels: image channels.
    """

    input_shape = (1, 28, 28)
    latents = ("gate1", "gate2", "gate4")
    """Where the latent features z_l of the vulnerability are taken: after ReLU and gate, before pooling."""
    gate_sites: ClassVar[dict[str, tuple[int, float]]] = {
        "gate1": (20, -1.0),
        "gate2": (50, -1.0),
        "gate3": (800, -1.0),
        "gate4": (500, -1.0),
    }
    """Slot -> (units, initial a_uc)."""

    def __init__(self, classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        self.input_shape = (channels, 28, 28)
        # Digits are used as they come, as published: standardising changes nothing but the scale of conv1.
        self.normalize = Normalize([0.0] * channels, [1.0] * channels)
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.relu1 = nn.ReLU()
        self.gate1 = nn.Identity()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.relu2 = nn.ReLU()
        self.gate2 = nn.Identity()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.gate3 = nn.Identity()
        self.fc1 = nn.Linear(800, 500)
        self.relu3 = nn.ReLU()
        self.gate4 = nn.Identity()
        self.fc2 = nn.Linear(500, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images N x C x 28 x 28 in [0, 1] to logits N x classes."""
        x = self.pool1(self.gate1(self.relu1(self.conv1(self.normalize(images)))))
        x = self.pool2(self.gate2(self.relu2(self.conv2(x))))
        x = self.gate4(self.relu3(self.fc1(self.gate3(self.flatten(x)))))
        logits: Tensor = self.fc2(x)
        return logits

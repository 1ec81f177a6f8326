"""Networks of the published tables and of the field. [0, 1] images in, logits out, normalisation inside."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from anp_vs.errors import InputError
from anp_vs.networks.lenet import LeNet
from anp_vs.networks.preact import PreActResNet18, WideResNet, WideResNet28x4, WideResNet28x10
from anp_vs.networks.resnet import ResNet18
from anp_vs.networks.vgg import VGG16

NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "lenet5-caffe": LeNet,
    "vgg16": VGG16,
    "resnet18": ResNet18,
    "preactresnet18": PreActResNet18,
    "wideresnet28-4": WideResNet28x4,
    "wideresnet28-10": WideResNet28x10,
}


def build(name: str, classes: int = 10) -> nn.Module:
    """A freshly initialised network.

    Args:
        name: one of `NETWORKS`.
        classes: number of logits, at least 2.

    Raises:
        InputError: for an unknown name or fewer than two classes.
    """
    if name not in NETWORKS:
        raise InputError(f"Unknown network {name!r}; choose one of {', '.join(sorted(NETWORKS))}.")
    if classes < 2:
        raise InputError(f"A classifier needs at least 2 classes, got {classes}.")
    return NETWORKS[name](classes)


__all__ = ["NETWORKS", "VGG16", "LeNet", "PreActResNet18", "ResNet18", "WideResNet", "build"]

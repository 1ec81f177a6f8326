"""Networks of the published tables and of the field. [0, 1] images in, logits out, normalisation inside."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import nn

from anp_vs.errors import InputError
from anp_vs.networks.lenet import LeNet
from anp_vs.networks.preact import PreActResNet18, WideResNet, WideResNet28x4, WideResNet28x10
from anp_vs.networks.resnet import ResNet18
from anp_vs.networks.vgg import VGG16, StandardisedVGG16

NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "lenet5-caffe": LeNet,
    "vgg16": VGG16,
    "vgg16-standardised": StandardisedVGG16,
    "resnet18": ResNet18,
    "preactresnet18": PreActResNet18,
    "wideresnet28-4": WideResNet28x4,
    "wideresnet28-10": WideResNet28x10,
}
"""Name -> what makes a network with a given number of logits."""


def register(name: str, factory: Callable[[int], nn.Module]) -> None:
    """Let recipes, the command line and saved networks know a network of your own by a name.

    Args:
        name: letters, digits and any of . _ + -, not that of another network.
        factory: number of logits -> network; float images N x C x H x W in [0, 1] in, logits out, normalisation
            inside. The class itself will often do.

    Raises:
        InputError: the name is taken, or is no name.
    """
    if not re.fullmatch(r"[\w.+-]{1,100}", name, re.ASCII):
        raise InputError(f"The network's name is {name!r}; use up to 100 letters, digits and any of . _ + -.")
    if NETWORKS.get(name, factory) is not factory:
        raise InputError(f"There is a network {name!r} already; choose another name.")
    NETWORKS[name] = factory


def build(name: str, classes: int = 10) -> nn.Module:
    """A freshly initialised network; its attribute `built_as` is the name.

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
    network = NETWORKS[name](classes)
    network.built_as = name  # type: ignore[assignment]
    return network


__all__ = ["NETWORKS", "VGG16", "LeNet", "PreActResNet18", "ResNet18", "WideResNet", "build", "register"]

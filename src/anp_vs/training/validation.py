"""Clean and robust accuracy on the validation split, after each epoch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from anp_vs.attacks.losses import ce
from anp_vs.attacks.pgd import ascend
from anp_vs.attacks.protocols import protocol_by_name
from anp_vs.data import Split, to_float
from anp_vs.device import full_float32
from anp_vs.recipes import Recipe
from anp_vs.training.seeding import generator

IMAGES = 1000
BATCH = 125
STEPS = 20


@full_float32()
def validate(network: nn.Module, split: Split, recipe: Recipe, stop: Callable[[], bool]) -> dict[str, float] | None:
    """Clean and PGD accuracy in percent on the first images of a split.

    Args:
        network: in evaluation mode; its parameters lose their gradients.
        split: the validation images, on the network's device.
        recipe: whose test attack's radius is used, whose protocol, and whose seed.
        stop: asked before each batch; None is returned when it says so.
    """
    network.requires_grad_(False)
    split = split.head(IMAGES)
    eps, protocol = recipe.test_attack.eps, protocol_by_name(recipe.protocol)
    clean = robust = 0
    order = torch.split(torch.arange(len(split)), BATCH)
    for indices, (pictures, labels) in zip(order, split.batches(order), strict=True):
        if stop():
            return None
        images, begin = protocol.prepare(to_float(pictures)), int(indices[0])
        draws = generator(images.device, recipe.seed, "validate", begin)
        noise = torch.empty_like(images).uniform_(-eps, eps, generator=draws)
        right = network(images).argmax(1) == labels
        clean += int(right.sum())
        # What is wrong already is not robust and needs no attack; but a random network may be right the next time.
        tried = right | recipe.method.random
        if not tried.any():
            continue
        images, labels = images[tried], labels[tried]
        lower, upper = protocol.box(images, eps)
        start = torch.clamp(images + noise[tried], lower, upper)
        attacked = ascend(network, start, lower, upper, labels, 2.5 * eps / STEPS, STEPS, ce)
        robust += int((network(attacked).argmax(1) == labels).sum())
    total = max(len(split), 1)
    return {"clean_accuracy": 100 * clean / total, "robust_accuracy": 100 * robust / total}

"""Latent features and how far an attack moves them.

Source: Madaan, Shin, Hwang (ICML 2020), section 3.1: the vulnerability of a latent feature is
v(z_lk, z~_lk) = E |z_lk(x) - z_lk(x~)|.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from anp_vs.errors import InputError

Reduction = Literal["mean", "sum"]


def latent_paths(network: nn.Module) -> tuple[str, ...]:
    """Module paths whose outputs are the latent features: `network.latents`, else every ReLU-like activation.

    Raises:
        InputError: the network declares none and has no activation module.
    """
    declared: tuple[str, ...] = getattr(network, "latents", ())
    if declared:
        return declared
    activations = (nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.ELU)
    found = tuple(name for name, module in network.named_modules() if isinstance(module, activations))
    if not found:
        raise InputError(
            f"{type(network).__name__} has no activation module to record; set its attribute `latents` to the "
            f"paths of the modules whose outputs are the latent features."
        )
    return found


@contextmanager
def recorded(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """While open, every forward pass leaves its latent features in the yielded dict, by module path."""
    features: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            features[name] = output

        return network.get_submodule(name).register_forward_hook(hook)

    handles = [keep(name) for name in latent_paths(network)]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]


def distortion(features: dict[str, Tensor], reduction: Reduction = "mean") -> Tensor:
    """The network's vulnerability V from features of a batch [clean; adversarial].

    Args:
        features: layer -> 2B x K (x H x W), first half clean, second half adversarial, same images.
        reduction: `mean`, over batch and all elements of a layer, then over layers (the values of the published
            tables); or `sum`, the paper's formula: over the elements of a layer and over layers, divided by the
            number of layers, mean over the batch.

    Returns:
        A scalar, at least 0; gradients reach both halves.
    """
    terms = []
    for latent in features.values():
        clean, adversarial = latent.chunk(2)
        # |clean - adversarial|; holds nothing for its gradient but the two, which the network holds anyway.
        with torch.autocast(latent.device.type, enabled=False):  # in the features' precision, not converted first
            difference = functional.l1_loss(clean, adversarial, reduction="none")
        # Sums of many small values need float32, whatever precision the features have.
        dtype = torch.promote_types(difference.dtype, torch.float32)
        mean = difference.mean(dtype=dtype) if reduction == "mean" else difference.flatten(1).sum(1, dtype=dtype).mean()
        terms.append(mean)
    return torch.stack(terms).mean()

"""Latent features and how far an attack moves them.

Source: Madaan, Shin, Hwang (ICML 2020), section 3.1: the vulnerability of a latent feature is
v(z_lk, z~_lk) = E |z_lk(x) - z_lk(x~)|.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.hooks import RemovableHandle

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
            f"paths of the modules whose outputs are the latent features, or train by a method without V."
        )
    return found


@contextmanager
def recorded(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """While open, every forward pass leaves its latent features in the yielded dict, those of the last pass alone.

    An entry is named by the module's path; a module that is called several times in a pass has an entry for each
    call: `act`, `act#2`, ... (see `module_path`).
    """
    features: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def begin(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features.clear()
        calls.clear()

    def keep(name: str) -> RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls[name] += 1
            features[f"{name}#{calls[name]}" if calls[name] > 1 else name] = output

        return network.get_submodule(name).register_forward_hook(hook)

    handles = [network.register_forward_pre_hook(begin), *(keep(name) for name in latent_paths(network))]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


def module_path(entry: str) -> str:
    """The path of the module that made an entry of `recorded`."""
    return entry.partition("#")[0]


def distortion(
    features: Mapping[str, Tensor], reduction: Reduction = "mean", held: Mapping[str, float] | None = None
) -> Tensor:
    """The network's vulnerability V from features of a batch [clean; adversarial].

    Args:
        features: layer -> 2B x K (x H x W), first half clean, second half adversarial, same images.
        reduction: `mean`, over batch and all elements of a layer, then over layers (the values of the published
            tables); or `sum`, the paper's formula: over the elements of a layer and over layers, divided by the
            number of layers, mean over the batch.
        held: layer -> share of its original units that it still holds: those taken out count as units that do not
            move, so that V and the weight it has do not jump when they leave; `sum` needs no such thing.

    Returns:
        A scalar, at least 0; gradients reach both halves.

    Raises:
        InputError: there are no features.
    """
    if not features:
        raise InputError(
            "No module of the network's latent features was called in its forward pass; set its attribute `latents` to "
            "the paths of modules that are, or train by a method without V."
        )
    terms = []
    for path, latent in features.items():
        whole = latent.numel() / (held or {}).get(path, 1.0) if reduction == "mean" else latent.shape[0]
        count = whole / 2
        terms.append(_Movement.apply(latent) / count)  # type: ignore[no-untyped-call]
    return torch.stack(terms).mean()


class _Movement(torch.autograd.Function):
    """Sum of |first half - second half| of a batch.

    Composed of library functions, its gradient comes in another memory layout than channels-last features, and
    every elementwise function before it then runs several times slower.
    """

    @staticmethod
    def forward(ctx: Any, latent: Tensor) -> Tensor:
        ctx.save_for_backward(latent)  # which the network holds anyway
        clean, adversarial = latent.chunk(2)
        # Sums of many small values need float32, whatever precision the features have.
        total: Tensor = (clean - adversarial).abs_().sum(dtype=torch.promote_types(latent.dtype, torch.float32))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (latent,) = ctx.saved_tensors
        result = torch.empty_like(latent)
        clean, adversarial = result.chunk(2)
        torch.sub(*latent.chunk(2), out=clean).sign_().mul_(gradient.to(latent.dtype))
        torch.neg(clean, out=adversarial)
        return result

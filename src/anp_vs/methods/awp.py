"""AWP: adversarial weight perturbation (Wu et al. 2020, arXiv 2004.05884), an addition to any method.

    v = gamma |w| g / |g| for each layer's weight w,   g = gradient of L(w) over w
    weights:  min L(w + v)

The loss is taken at the worst weights nearby, which flattens the loss landscape and narrows the gap between
training and test robustness. The gradient at w + v is applied to w.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from anp_vs.errors import InputError
from anp_vs.methods.method import Method, Objective
from anp_vs.networks.bayesian import Bayesian
from anp_vs.pruning.gate import gate_parameters

Gradients = Sequence[Tensor | None]


def perturbed_objective(
    method: Method,
    network: nn.Module,
    images: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    training_images: int,
    gamma: float,
    average: Callable[[Gradients], Gradients] = lambda gradients: gradients,
) -> Objective:
    """`method.objective` at adversarially perturbed weights; a second pass forwards and one backwards more.

    The gradients of its losses over the network's parameters are those at the perturbed weights, and no
    parameter has been changed: backward and the optimiser's step go on as without it. BatchNorm statistics
    move once, as without it.

    Args:
        method: any method.
        network: in training mode.
        images: clean, B x C x H x W in [0, 1].
        adversarial: attacked, same shape.
        labels: int64, B, or class probabilities B x K.
        training_images: N.
        gamma: length of the perturbation relative to each layer's weights, >= 0; 0.005 as published.
        average: of gradients over the processes that share a batch, so that all shift their weights alike.

    Raises:
        InputError: for a gamma out of range.
    """
    if not 0 <= gamma < 1:
        raise InputError(f"gamma is {gamma}; it is a share of each layer's norm and must lie in [0, 1).")
    if gamma == 0:
        return method.objective(network, images, adversarial, labels, training_images)
    kept = {name: buffer.clone() for name, buffer in network.named_buffers()}
    loss = method.objective(network, images, adversarial, labels, training_images).weights
    shifts = worst_shifts(network, loss, gamma, average)
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            buffer.copy_(kept[name])
    with shifted(network, shifts):
        return method.objective(network, images, adversarial, labels, training_images)


def worst_shifts(
    network: nn.Module,
    loss: Tensor,
    gamma: float,
    average: Callable[[Gradients], Gradients] = lambda gradients: gradients,
) -> dict[str, Tensor]:
    """The shift gamma |w| g / |g| of every weight tensor of more than one dimension, by parameter name.

    Args:
        network: whose weights they are; biases, normalisation, gates, the spread of a Bayesian layer's weights, and
            single weights that are exactly 0 (pruned ones) stay where they are.
        loss: scalar with a graph to the weights.
        gamma: relative length.
        average: of gradients over the processes that share a batch.
    """
    spreads = [module.weight_rho for module in network.modules() if isinstance(module, Bayesian)]
    excluded = {id(parameter) for parameter in (*gate_parameters(network), *spreads)}
    weights = {
        name: parameter
        for name, parameter in network.named_parameters()
        if parameter.dim() > 1 and parameter.requires_grad and id(parameter) not in excluded
    }
    gradients = average(torch.autograd.grad(loss, list(weights.values()), allow_unused=True))
    shifts = {}
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        if gradient is not None:
            gradient = gradient * (weight.detach() != 0)
            length = gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny)
            shifts[name] = gradient * (gamma * weight.detach().norm() / length)
    return shifts


@contextmanager
def shifted(network: nn.Module, shifts: Mapping[str, Tensor]) -> Iterator[None]:
    """While open, forward passes use w + shift; gradients through it reach the parameters w themselves.

    Args:
        network: whose parameters are shifted.
        shifts: by parameter name.
    """
    own = {name: network.get_parameter(name) for name in shifts}
    names = {id(parameter): name for name, parameter in own.items()}
    # A tied weight has several places.
    places = [
        (module, leaf, names[id(parameter)])
        for module in network.modules()
        for leaf, parameter in module._parameters.items()
        if id(parameter) in names
    ]
    try:
        # A tensor in the parameter's place: its history leads back to the parameter.
        moved = {name: own[name] + shifts[name] for name in shifts}
        for module, leaf, name in places:
            module._parameters[leaf] = moved[name]  # type: ignore[assignment]
        yield
    finally:
        for module, leaf, name in places:
            module._parameters[leaf] = own[name]

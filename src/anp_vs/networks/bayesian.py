"""Bayesian convolution and dense layers: a Gaussian posterior in the place of every weight.

Source: Liu et al. 2019, "Adv-BNN: Improved Adversarial Defense through Robust Bayesian Neural Network"
(arXiv 1810.01279), section 3.2; Blundell et al. 2015 (arXiv 1505.05424).

    posterior   w ~ N(mu, s^2),   s = exp(rho)            prior   N(0, sigma_0^2)
    w = mu + exp(rho) * e,   e ~ N(0, 1)
    KL(posterior || prior) = sum log(sigma_0) - rho + (s^2 + mu^2) / (2 sigma_0^2) - 1/2
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from anp_vs.errors import InputError


class Bayesian(nn.Module):
    """What Bayesian layers share.

    Weights are drawn once in every forward pass, for the whole batch, in training *and in evaluation*: that
    makes the network random. Its prediction is the average over passes, and an attack averages gradients.

    Attributes:
        weight, bias: mu, the posterior's means; named as in the plain layer, so that its weights load.
        weight_rho, bias_rho: rho, logarithm of the posterior's standard deviations; as many again.
        prior_sigma: sigma_0, standard deviation of the prior, > 0.
    """

    weight: Tensor
    bias: Tensor | None
    weight_rho: Tensor
    bias_rho: Tensor | None
    prior_sigma: float

    def take_over(self, layer: nn.Conv2d | nn.Linear, prior_sigma: float, initial_rho: float) -> None:
        """Use a plain layer's own parameters as means, and start every rho at one value."""
        self.weight, self.bias = layer.weight, layer.bias
        self.weight_rho = nn.Parameter(torch.full_like(layer.weight, initial_rho))
        bias_rho = None if layer.bias is None else nn.Parameter(torch.full_like(layer.bias, initial_rho))
        self.register_parameter("bias_rho", bias_rho)
        self.prior_sigma = prior_sigma
        self.train(layer.training)

    def draw(self) -> tuple[Tensor, Tensor | None]:
        """A weight and a bias from the posterior, differentiable in mu and rho."""
        weight = self.weight + self.weight_rho.exp() * _noise(self.weight)
        if self.bias is None or self.bias_rho is None:
            return weight, None
        return weight, self.bias + self.bias_rho.exp() * _noise(self.bias)

    def kl(self) -> Tensor:
        """KL from the posterior to the prior, summed over weights and biases; scalar, at least 0."""
        total = self._kl(self.weight, self.weight_rho)
        if self.bias is not None and self.bias_rho is not None:
            total = total + self._kl(self.bias, self.bias_rho)
        return total

    def _kl(self, mu: Tensor, rho: Tensor) -> Tensor:
        spread = ((2 * rho).exp() + mu.square()) / (2 * self.prior_sigma**2)
        return (math.log(self.prior_sigma) - rho + spread - 0.5).sum()


def _noise(like: Tensor) -> Tensor:
    # Contiguous, so that one seed gives one network whatever the weights' layout in memory.
    return torch.randn_like(like, memory_format=torch.contiguous_format)


class BayesianConv2d(nn.Conv2d, Bayesian):
    """A convolution whose weights are drawn in every forward pass."""

    def forward(self, features: Tensor) -> Tensor:
        """Features N x C x H x W to features, as the plain convolution."""
        weight, bias = self.draw()
        result: Tensor = self._conv_forward(features, weight, bias)
        return result


class BayesianLinear(nn.Linear, Bayesian):  # type: ignore[misc]  # Linear's bias is not declared optional
    """A dense layer whose weights are drawn in every forward pass."""

    def forward(self, features: Tensor) -> Tensor:
        """Features N x ... x K to features, as the plain layer."""
        weight, bias = self.draw()
        return functional.linear(features, weight, bias)


_NOT_CONVERTED = (
    nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Bilinear, nn.MultiheadAttention,
    nn.RNNBase,
)  # fmt: skip
"""Layers with weights that would stay as they are, or whose parts are read past their own passes."""


def make_bayesian(network: nn.Module, prior_sigma: float, initial_rho: float) -> nn.Module:
    """Turn every convolution and dense layer into its Bayesian form, in place.

    Args:
        network: with plain layers; what they hold becomes the posterior's means.
        prior_sigma: sigma_0 > 0.
        initial_rho: of every weight and bias.

    Returns:
        The same network, with twice as many weights.

    Raises:
        InputError: it has Bayesian layers already, no layer to convert, or one that has no Bayesian form here.
    """
    if is_random(network):
        raise InputError(f"{type(network).__name__} is Bayesian already; convert it once.")
    foreign = next((n for n, m in network.named_modules() if isinstance(m, _NOT_CONVERTED)), None)
    if foreign is not None:
        raise InputError(
            f"{foreign} ({type(network.get_submodule(foreign)).__name__}) of {type(network).__name__} has no Bayesian form "
            f"here; at-bnn takes networks of nn.Conv2d and nn.Linear."
        )
    plain = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    if not plain or plain[0][0] == "":
        raise InputError(
            f"{type(network).__name__} holds no convolution or dense layer that could become Bayesian; "
            f"a single layer has to be wrapped in nn.Sequential."
        )
    for name, layer in plain:
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, _bayesian(layer, prior_sigma, initial_rho))
    return network


def _bayesian(layer: nn.Conv2d | nn.Linear, prior_sigma: float, initial_rho: float) -> Bayesian:
    made: Bayesian
    # On `meta` nothing is initialised: the layer's own parameters take the place.
    if isinstance(layer, nn.Linear):
        made = BayesianLinear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    else:
        made = BayesianConv2d(
            layer.in_channels,
            layer.out_channels,
            cast(tuple[int, int], layer.kernel_size),
            cast(tuple[int, int], layer.stride),
            cast("str | tuple[int, int]", layer.padding),
            cast(tuple[int, int], layer.dilation),
            layer.groups,
            layer.bias is not None,
            layer.padding_mode,
            device="meta",
        )
    made.take_over(layer, prior_sigma, initial_rho)
    return made


def bayesian_layers(network: nn.Module) -> dict[str, Bayesian]:
    """Every Bayesian layer of a network by its module path, in order of registration."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Bayesian)}


def is_random(network: nn.Module) -> bool:
    """Whether two forward passes in evaluation mode give different answers, because weights are drawn."""
    return bool(bayesian_layers(network))


def weights_kl(network: nn.Module) -> Tensor:
    """Sum over all Bayesian layers of the KL from posterior to prior; scalar.

    Raises:
        InputError: the network has none.
    """
    terms = [layer.kl() for layer in bayesian_layers(network).values()]
    if not terms:
        raise InputError(f"{type(network).__name__} has no Bayesian layer; convert it with `make_bayesian` first.")
    return torch.stack(terms).sum()

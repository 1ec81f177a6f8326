"""The Beta-Bernoulli gate: one learned, random multiplier per unit (channel or neuron).

Source: Lee et al., "Adaptive Network Sparsification with Dependent Variational Beta-Bernoulli Dropout"
(arXiv 1805.10896), as used by Madaan, Shin, Hwang (ICML 2020), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from anp_vs.networks import NETWORKS
from anp_vs.networks.latents import module_path
from anp_vs.networks.layers import Dropout

ALPHA = 1e-4
"""Concentration of the prior Beta(alpha, 1): the smaller, the sparser."""
TEMPERATURE = 0.1
"""Temperature of the binary concrete relaxation."""
THRESHOLD = 1e-3
"""A unit whose E[pi] is not above this is pruned: exactly zero in evaluation."""
EULER_GAMMA = 0.5772156649015329


class Gate(nn.Module):
    """Multiplies unit k of its input by z_k.

    In training z is a binary-concrete sample: pi is drawn once per batch and unit, z per sample and unit.
    In evaluation z_k = E[pi_k] where that exceeds 1e-3 and exactly 0 elsewhere (*pruned*).

    The few thousand gate parameters are computed in float64: E[pi] is a difference of log-gamma values near
    2e5, of which float32 keeps one digit.

    Args:
        units: number of gated channels or neurons K.
        a_uc: initial unconstrained first Kumaraswamy parameter, a = softplus(max(a_uc, -10)).
        b_uc: initial unconstrained second parameter, b = softplus(clip(b_uc, -10, 50)); 0.5413 gives b = 1.
        dim: the axis of the input that holds the units.
        block: entries of the axis that one unit covers, one after another: several where channels can only
            leave together (flattened pixels of a channel, a group of a grouped convolution).

    Attributes:
        a_uc, b_uc: the parameters, float, shape (K,).
        original_units: K at construction; stays when units are removed, so that sparsity can be counted.
        index: None, or the positions of the input's units that the gate reads (int64); the rest of the
            input is dropped. Set when units are removed but the layer before cannot shrink with them.
        fixed: multiply by E[pi] (or 0) in training too; set once the gates have decided.
        copies: images in a batch that share one mask sample come as this many equal chunks of the batch
            (2 while a clean and an adversarial batch pass through together, see `shared_mask`).
        share: (rank, world): in data-parallel training the noise is drawn for the whole batch, and these rows of
            it are used.
        price: what its KL counts in `total_kl`; 1 as published.
        shared: the gate is applied at other places too, by a `GateReader` each.
    """

    index: Tensor | None

    def __init__(self, units: int, a_uc: float = -1.0, b_uc: float = 0.5413, *, dim: int = 1, block: int = 1) -> None:
        super().__init__()
        self.register_buffer("index", None)
        self.a_uc = nn.Parameter(torch.full((units,), a_uc))
        self.b_uc = nn.Parameter(torch.full((units,), b_uc))
        self.original_units = units
        self.dim, self.block = dim, block
        self.fixed = False
        self.copies = 1
        self.share = (0, 1)
        self.price = 1.0
        self.shared = False
        self._latest: Tensor | None = None

    @property
    def units(self) -> int:
        """The number of units the gate holds now."""
        return self.a_uc.numel()

    def concentrations(self) -> tuple[Tensor, Tensor]:
        """The Kumaraswamy parameters (a, b), each float64 of shape (K,), at least 4.5e-5."""
        a = functional.softplus(self.a_uc.double().clamp(min=-10.0))
        b = functional.softplus(self.b_uc.double().clamp(-10.0, 50.0))
        return a, b

    def expected(self) -> Tensor:
        """E[pi] under the posterior, float64 of shape (K,), in (0, 1)."""
        a, b = self.concentrations()
        # b * Gamma(b) = Gamma(1 + b) spares the subtraction of two large logarithms at small b.
        return torch.exp(torch.lgamma(1 + 1 / a) + torch.lgamma(1 + b) - torch.lgamma(1 + 1 / a + b))

    def mask(self) -> Tensor:
        """The deterministic multiplier of evaluation: E[pi], or exactly 0 where pruned. Shape (K,).

        A gate never closes its layer: if every unit would be pruned the strongest one stays.
        """
        expected = self.expected()
        stays = (expected > THRESHOLD).index_fill(0, expected.argmax(), True)
        return torch.where(stays, expected, 0.0).to(self.a_uc.dtype)

    def collapsed(self) -> bool:
        """Whether every unit would be pruned, so that only the strongest is kept to pass anything on."""
        return bool(self.expected().max() <= THRESHOLD)

    def alive(self) -> Tensor:
        """Which units survive evaluation, bool of shape (K,)."""
        return self.mask() > 0

    def kl(self) -> Tensor:
        """KL from the Kumaraswamy posterior to the Beta(alpha, 1) prior, summed over units: float64."""
        a, b = self.concentrations()
        # -digamma(b) - 1/b = -digamma(b + 1), which does not cancel at small b.
        return ((1 - ALPHA / a) * (-EULER_GAMMA - torch.digamma(1 + b)) + torch.log(a * b / ALPHA) - (b - 1) / b).sum()

    def sample(self, batch: int) -> Tensor:
        """Draw z, shape (batch, K), in [0, 1]; differentiable in a_uc and b_uc."""
        a, b = self.concentrations()
        u = torch.rand_like(a).clamp(1e-10, 1 - 1e-10)
        # pi = (1 - u^(1/b))^(1/a), in logarithms; the clamps bind only where z is 0 or 1 to the last bit.
        log_power = (torch.log(u) / b).clamp(min=-600.0)
        log_pi = (torch.log(-torch.expm1(log_power)) / a).clamp(max=-1e-300)
        logit_pi = log_pi - torch.log(-torch.expm1(log_pi))
        rank, world = self.share
        noise = torch.rand(world, batch, self.units, device=a.device, dtype=self.a_uc.dtype)[rank]
        noise = noise.clamp(1e-7, 1 - 1e-7)
        logit = torch.log(noise) - torch.log1p(-noise) + logit_pi.clamp(-1e4, 1e4).to(noise.dtype)
        return torch.sigmoid(logit / TEMPERATURE)

    def forward(self, features: Tensor) -> Tensor:
        """Gate features whose axis `dim` has K * block entries; returns the same shape and dtype."""
        if self.fixed or not self.training:
            return self.multiply(features, self.mask(), self.block, self.dim)
        z = self.sample(features.shape[0] // self.copies).repeat(self.copies, 1)
        self._latest = z if self.shared else None
        return self.multiply(features, z, self.block, self.dim)

    def latest(self) -> Tensor:
        """The multiplier that the gate itself used in this forward pass: (batch, K), in evaluation (K,)."""
        if self.fixed or not self.training:
            return self.mask()
        assert self._latest is not None, "a gate is applied before those that read it"
        return self._latest

    def multiply(self, features: Tensor, z: Tensor, block: int, dim: int) -> Tensor:
        """Features times a multiplier of each unit, one for all images (K,) or one for each (batch, K)."""
        if self.index is not None:
            features = features.index_select(dim, entries(self.index, block))
        shape = [1] * features.dim()
        shape[dim] = self.units * block
        if z.dim() == 2:
            shape[0] = features.shape[0]
        if block > 1:
            z = z.repeat_interleave(block, -1)
        return features * z.to(features.dtype).view(shape)

    def __getstate__(self) -> dict[str, Any]:
        """Without the latest sample: it belongs to one pass and cannot be copied."""
        return {**self.__dict__, "_latest": None}

    def extra_repr(self) -> str:
        """What the printed network shows of it."""
        removed = f", {self.original_units - self.units} removed" if self.original_units != self.units else ""
        return f"{self.units}{removed}"


def entries(units: Tensor, block: int) -> Tensor:
    """Positions along an axis of the entries that some units cover."""
    if block == 1:
        return units
    return (units[:, None] * block + torch.arange(block, device=units.device)).flatten()


def gates(network: nn.Module) -> dict[str, Gate]:
    """Every gate of a network by its module path, each once, in order of registration."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Gate)}


def gate_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters (a_uc, b_uc) of all gates."""
    return [p for gate in gates(network).values() for p in (gate.a_uc, gate.b_uc)]


def weight_parameters(network: nn.Module) -> list[nn.Parameter]:
    """All parameters that are trained and not a gate's; what asks for no gradient is a user's frozen layer."""
    excluded = {id(p) for p in gate_parameters(network)}
    return [p for p in network.parameters() if p.requires_grad and id(p) not in excluded]


def total_kl(network: nn.Module) -> Tensor:
    """Sum of the gates' KL terms, each times the gate's price; 0 for a network without gates."""
    terms = [gate.price * gate.kl() for gate in gates(network).values()]
    return torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float64)


def sparsity_percent(network: nn.Module, alive: Mapping[str, Tensor] | None = None) -> float:
    """100 (1 - active units / original units) over all gates; 0 without gates. `alive`: what is known of them already."""
    found = gates(network)
    original = sum(gate.original_units for gate in found.values())
    if not original:
        return 0.0
    with torch.no_grad():
        known = alive or {name: gate.alive() for name, gate in found.items()}
        return 100.0 * (1 - sum(int(units.sum()) for units in known.values()) / original)


@torch.no_grad()
def last_to_go(network: nn.Module, sparsity: float) -> float:
    """Log E[pi] of the strongest unit among the weakest ones, of which there are `sparsity` percent of all.

    When it falls below the logarithm of 1e-3 that sparsity is reached. Units that have left count as the weakest.
    """
    found = gates(network).values()
    expected = torch.cat([gate.expected() for gate in found]).sort().values
    original = sum(gate.original_units for gate in found)
    place = math.ceil(sparsity / 100 * original) - 1 - (original - len(expected))
    return math.log(float(expected[max(place, 0)]))


def original_units(network: nn.Module, path: str) -> int | None:
    """Units of a latent layer in the architecture before anything was removed; None where it is not known.

    Args:
        network: that holds the layer.
        path: of its module, or the name of an entry of `anp_vs.networks.latents.recorded`.
    """
    path = module_path(path)
    module = network.get_submodule(path)
    if isinstance(module, Gate):
        return module.original_units
    sites: dict[str, tuple[int, float]] = getattr(network, "gate_sites", {})
    if path in sites:
        return sites[path][0]
    widths: dict[str, int] = getattr(network, "latent_widths", {})
    if path in widths:
        return widths[path]
    name = next((name for name, made in NETWORKS.items() if type(network) is made), None)
    return None if name is None or not isinstance(module, nn.Linear | nn.Conv2d) else _built_units(name, path)


@cache  # training asks in every step
def _built_units(name: str, path: str) -> int | None:
    with torch.device("meta"):  # only shapes are wanted
        layer = NETWORKS[name](2).get_submodule(path)
    return len(layer.weight) if isinstance(layer, nn.Linear | nn.Conv2d) else None


def units_held(network: nn.Module, features: Mapping[str, Tensor]) -> dict[str, float]:
    """Of each layer of latent features the share of its original units that it still holds; 1 where that is not known."""
    shares = {}
    for path, latent in features.items():
        module = network.get_submodule(module_path(path))
        held = module.units if isinstance(module, Gate) else latent.shape[1]
        shares[path] = held / max(original_units(network, path) or held, held)
    return shares


@contextmanager
def shared_mask(network: nn.Module, copies: int = 2) -> Iterator[None]:
    """While open, a batch is `copies` equal chunks of the same images, each under the same random masks.

    Gates and dropout then draw one sample for all chunks, so that the vulnerability |z(x) - z(x~)| holds the
    movement of the features, not the noise of two masks.
    """
    found = [module for module in network.modules() if isinstance(module, Gate | Dropout)]
    for module in found:
        module.copies = copies
    try:
        yield
    finally:
        for module in found:
            module.copies = 1

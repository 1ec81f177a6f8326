"""Put Beta-Bernoulli gates into a network."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from anp_vs.errors import InputError
from anp_vs.modes import evaluating
from anp_vs.networks.latents import module_path, recorded
from anp_vs.pruning.gate import Gate, gates
from anp_vs.pruning.graph import Graph, example_for
from anp_vs.pruning.groups import Decision, Residual, decide
from anp_vs.pruning.reader import GatedLayer, GateReader, axis_read
from anp_vs.pruning.slicing import replace

logger = logging.getLogger(__name__)

INITIAL_A = 2.0
"""Initial a_uc of a gate in a network that declares none: E[pi] = 0.68, as published for convolutions."""


def insert_gates(network: nn.Module, example: Tensor | None = None, residual: Residual = "keep") -> nn.Module:
    """Put a gate on the channels of every prunable layer of a network, in place.

    The built-in networks declare where (`gate_sites`), as published: after the activation, so that a pruned
    channel is exactly zero. Any other network is traced: a gate then stands directly in front of each
    convolution or dense layer, on what it reads, and layers that read the same channels share one gate.

    Args:
        network: a classifier without gates.
        example: images N x C x H x W in [0, 1] that the network accepts; by default made from its
            `input_shape`, which is set from the example if the network has none.
        residual: what becomes of channels that go through an addition: `keep` leaves them whole, so that only
            the inner channels of residual blocks can go; `share` gives all layers that read such a stream one
            gate.

    Returns:
        The same network, with gates.

    Raises:
        InputError: the network has gates already, cannot be traced, has nothing to prune, or answers the same
            images differently from pass to pass.
    """
    if gates(network):
        raise InputError(f"{type(network).__name__} has gates already; insert them once, into a network without.")
    known = set(network.modules())
    sites: dict[str, tuple[int, float]] | None = getattr(network, "gate_sites", None)
    first = next(network.parameters(), None)
    if sites and first is not None and residual == "keep":
        for path, (units, a_uc) in sites.items():
            replace(network, path, Gate(units, a_uc).to(first.device, first.dtype))
        for path in getattr(network, "dropped_by_gates", ()):
            replace(network, path, nn.Identity())
        return _in_its_mode(network, known)
    example = _checked(network, example)
    decisions = decide(Graph(network, example), residual)
    for decision in decisions:
        logger.info("%s: %s", decision.layer, decision.reason)
    # Where a gate stands in front of a layer, what the layer's activation once held is known only now.
    network.latent_widths = _latent_widths(network, example)  # type: ignore[assignment]
    insert(network, decisions)
    if getattr(network, "input_shape", None) is None:
        network.input_shape = tuple(example.shape[1:])  # type: ignore[assignment]
    return _in_its_mode(network, known)


def _latent_widths(network: nn.Module, example: Tensor) -> dict[str, int]:
    """Units of each latent feature by the path of its module; nothing for a network that has none."""
    try:
        with evaluating(network), torch.no_grad(), recorded(network) as features:
            network(example)
            return {module_path(path): latent.shape[1] for path, latent in features.items()}
    except InputError:  # it can be pruned all the same
        return {}


def _in_its_mode(network: nn.Module, known: set[nn.Module]) -> nn.Module:
    """`network`, its new modules in its mode; those `known` keep theirs, such as a frozen BatchNorm's."""
    for module in set(network.modules()) - known:
        module.training = network.training
    return network


def explain(network: nn.Module, example: Tensor | None = None, residual: Residual = "keep") -> list[Decision]:
    """Where `insert_gates` would put gates by tracing, and where not and why; changes nothing.

    Args:
        network: a classifier without gates.
        example: as for `insert_gates`.
        residual: as for `insert_gates`.

    Returns:
        One decision for every convolution and dense layer, in the order of the forward pass.

    Raises:
        InputError: as `insert_gates` does for a network that cannot be traced.
    """
    return decide(Graph(network, _checked(network, example)), residual)


def insert(network: nn.Module, decisions: list[Decision]) -> nn.Module:
    """Put the gates of some decisions in front of their layers, in place, and return the network.

    Raises:
        InputError: there are none.
    """
    gated = [d for d in decisions if d.gate is not None]
    if not gated:
        reasons = "; ".join(f"{d.layer}: {d.reason}" for d in decisions[:5])
        raise InputError(
            f"{type(network).__name__} has no layer that can be pruned. "
            + (f"{reasons}." if reasons else "It holds no convolution or dense layer as a module.")
            + " See `explain` for each layer; residual='share' also gates channels that go through additions."
        )
    for decision in gated:
        if decision.gate == decision.layer:
            layer = network.get_submodule(decision.layer)
            weight = layer.get_parameter("weight")
            block = weight.shape[1] // decision.units
            gate = Gate(decision.units, INITIAL_A, dim=axis_read(layer), block=block)
            replace(network, decision.layer, GatedLayer(gate.to(weight.device, weight.dtype), layer))
    numbers = {name: number for number, name in enumerate(gates(network))}
    for decision in gated:
        if decision.gate != decision.layer:
            name = f"{decision.gate}.gate"
            layer, gate = network.get_submodule(decision.layer), gates(network)[name]
            block = layer.get_parameter("weight").shape[1] // gate.units
            reader = GateReader(gate, numbers[name], block=block, dim=axis_read(layer)).to(gate.a_uc.device)
            replace(network, decision.layer, GatedLayer(reader, layer))
    return network


def _checked(network: nn.Module, example: Tensor | None) -> Tensor:
    """Images to trace with, on which the network has been seen to give logits, twice the same.

    Raises:
        InputError: there are none, or the network does not behave like a classifier.
    """
    name, first = type(network).__name__, next(network.parameters(), None)
    if first is None:
        raise InputError(f"{name} has no parameters, so there is nothing to prune.")
    if example is None:
        example = example_for(network)
    elif example.dim() != 4 or not example.is_floating_point():
        raise InputError(
            f"The example is {example.dtype} of shape {tuple(example.shape)}; give float images N x C x H x W in "
            f"[0, 1], such as torch.rand(2, 3, 224, 224)."
        )
    example = example.detach().to(first.device, first.dtype)
    if len(example) == 1:
        example = example.repeat(2, 1, 1, 1)  # a lone image would hide which axis is the batch's
    with evaluating(network), torch.no_grad():
        try:
            once, again = network(example), network(example)
        except Exception as error:
            raise InputError(
                f"{name} does not accept an example of shape {tuple(example.shape)}: {error}. Give images of the "
                f"size it is made for."
            ) from error
    if not isinstance(once, Tensor) or once.dim() != 2 or len(once) != len(example):
        shape = tuple(once.shape) if isinstance(once, Tensor) else type(once).__name__
        raise InputError(f"{name} returned {shape} for {len(example)} images; a classifier returns logits N x K.")
    if not torch.allclose(once, again, rtol=1e-4, atol=1e-4 * float(once.abs().max()), equal_nan=True):
        raise InputError(
            f"{name} gives other logits when it sees the same images again in evaluation mode. Something in it "
            f"stays random, such as functional dropout without training=self.training; make it follow the mode."
        )
    return example

"""The network of a recipe as its training begins: fitted to the data and the protocol, its units priced."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anp_vs.attacks.noise import seeded
from anp_vs.attacks.prediction import check_logits
from anp_vs.attacks.protocols import protocol_by_name
from anp_vs.data import Dataset, to_float
from anp_vs.errors import InputError
from anp_vs.evaluation.cost import unit_macs
from anp_vs.modes import evaluating
from anp_vs.networks import build
from anp_vs.networks.images import take_images
from anp_vs.networks.latents import latent_paths
from anp_vs.pruning.gate import gates
from anp_vs.pruning.graph import example_for
from anp_vs.recipes import Recipe


def fresh_network(recipe: Recipe, dataset: Dataset) -> nn.Module:
    """The network of a recipe as it is trained: for what the recipe's protocol shows it.

    Raises:
        InputError: it does not take the data's images, returns something else than logits when it trains, has no latent
            features that the method looks at, or saved as what it was built as it would not be what was trained.
    """
    protocol, built = protocol_by_name(recipe.protocol), build(recipe.network, len(dataset.classes))
    take_images(built, dataset.train.shape)
    _check_logits(built, len(dataset.classes))
    if recipe.method.sees_latents:
        latent_paths(built)
    network = protocol.adapt(built)
    if protocol.name != "pixel-space":
        pixels = to_float(dataset.train.head(8).images).cpu()
        with evaluating(built), evaluating(network), torch.no_grad():
            if not torch.allclose(built(pixels), network(protocol.prepare(pixels)), rtol=1e-3, atol=1e-3):
                raise InputError(
                    f"Under the protocol {protocol.name} each colour image is standardised by itself, which {recipe.network} "
                    f"does not do. Choose the network vgg16-standardised."
                )
    return network


def _check_logits(network: nn.Module, classes: int) -> None:
    """See that a network returns one logit a class, in training mode too, before anything is trained.

    Raises:
        InputError: it returns something else, such as probabilities, or another number of logits.
    """
    example, kept = example_for(network), {name: buffer.clone() for name, buffer in network.named_buffers()}
    with evaluating(network), seeded(0, example.device), torch.no_grad():  # every module gets its mode back
        alone = network(example[:1])  # a squeeze would take that axis away
        check_logits(alone, torch.zeros(1, dtype=torch.int64))
        logits = network(example)
        check_logits(logits, torch.zeros(len(example), dtype=torch.int64))
        answer = network.train()(example)
        for name, buffer in network.named_buffers():  # normalisation has counted the example
            buffer.copy_(kept[name])
    if logits.shape[1] != classes:
        raise InputError(
            f"{type(network).__name__} has {logits.shape[1]} outputs and the data {classes} classes. Its factory is called with "
            f"the number of classes; build it for so many."
        )
    if not isinstance(answer, Tensor) or answer.dim() != 2:
        found = (
            f"a tensor of shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        )
        raise InputError(
            f"{type(network).__name__} returns {found} in training mode; a method trains logits N x K alone. Register a "
            f"network that returns nothing else, for instance one without auxiliary heads."
        )


def set_prices(network: nn.Module, exponent: float) -> None:
    """Price each gate's KL by the MACs its units cost, see `Recipe.cost_exponent`."""
    if not exponent:
        return
    powers = {name: float(spared) ** exponent for name, spared in unit_macs(network).items()}
    found = gates(network)
    mean = sum(powers[name] * gate.units for name, gate in found.items()) / sum(g.units for g in found.values())
    for name, gate in found.items():
        gate.price = powers[name] / mean

"""What a training method is: a loss for the weights, one for the gates, and the attack it trains against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from anp_vs.attacks.losses import Loss, ce
from anp_vs.errors import InputError
from anp_vs.modes import evaluating
from anp_vs.networks.latents import Reduction, distortion, recorded
from anp_vs.pruning.gate import shared_mask, total_kl, units_held
from anp_vs.pruning.graph import example_for
from anp_vs.pruning.resizing import resize

PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Clean logits, adversarial logits (both B x K) and labels (B, or B x K as probabilities) to a scalar."""


@dataclass(frozen=True)
class Objective:
    """What one step minimises.

    Attributes:
        weights: scalar loss of the weights.
        gates: scalar loss of the gates' parameters, None when the network has no gates.
        logits: of the adversarial images (of the clean ones for a method without an attack), B x K, detached.
        clean_logits: of the clean images, or None when the method does not look at them.
        metrics: scalars to log.
    """

    weights: Tensor
    gates: Tensor | None
    logits: Tensor
    clean_logits: Tensor | None
    metrics: dict[str, Tensor]


class Companion(Protocol):
    """State that a method carries through training beside the network, and what it does around a step.

    The loop calls, in step number `step` (counted from 0 over the whole run): `penalty` after the objective,
    `before_step` once gradients are set, `after_step` once the optimisers have stepped.
    """

    def penalty(self) -> Tensor:
        """A scalar that is added to the loss of the weights."""
        ...

    def before_step(self, step: int) -> None:
        """May change the gradients of the weights."""
        ...

    def after_step(self, step: int) -> bool:
        """May change the weights.

        Returns:
            Whether what remembers the weights' past must start afresh: the state of their optimiser, and a
            running average of them.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, from which training goes on bit for bit."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        ...


@dataclass(frozen=True)
class Method:
    """Base of the methods; the fields of a subclass are its hyper-parameters."""

    name: ClassVar[str]
    source: ClassVar[str]
    gated: ClassVar[bool] = False
    """Whether the network gets gates."""
    adversarial: ClassVar[bool] = True
    """Whether training images are attacked."""
    random: ClassVar[bool] = False
    """Whether the network draws its weights anew in every forward pass, in evaluation too. An attack then
    averages gradients over several draws, and a prediction averages probabilities."""
    weight_decay: ClassVar[bool] = True
    """Whether the loop's L2 penalty applies; False where the loss holds a prior of its own."""

    transfers: ClassVar[bool] = False
    """Whether the network to start from was trained for another task, of which it keeps what fits."""

    @property
    def hard_labels(self) -> bool:
        """Whether the loss can only be computed from labels, not from class probabilities in their place."""
        return False

    @property
    def sees_latents(self) -> bool:
        """Whether the loss holds the vulnerability V, for which the network has to have latent features."""
        return False

    @property
    def start_radius(self) -> float | None:
        """Where the attack starts: uniform in the ball (None), or Gaussian with this standard deviation."""
        return None

    def begin(self, network: nn.Module, start: Mapping[str, Tensor]) -> list[str]:
        """Give a fresh network the trained weights it starts from, and their shapes if it was pruned.

        Returns:
            Names of what keeps fresh values.

        Raises:
            InputError: the weights are another architecture's, are for another number of classes, hold gates, or
                were pruned while the method prunes itself.
        """
        if any(name.endswith("a_uc") for name in start):
            small = "" if self.gated else "; start from the compact one that is saved beside it"
            raise InputError(f"The network to start from has gates, which {self.name} does not take over{small}.")
        classes, whole = _logits(network), _shapes(network)
        try:
            resize(network, start)
            network.load_state_dict(dict(start))
            if (logits := _logits(network)) != classes:
                raise InputError(f"they are for {logits} classes, and the data have {classes}.")
        except (InputError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:500]
            raise InputError(f"The weights to start from do not fit {type(network).__name__}: {reason}") from None
        if self.gated and whole != _shapes(network):
            raise InputError(
                f"The network to start from has been pruned, and {self.name} puts its gates into a whole one. Train the "
                f"small one on by a method without gates, such as at-vs or trades."
            )
        return []

    def prepare(self, network: nn.Module) -> nn.Module:
        """Change the network before training (gates are inserted by the loop)."""
        return network

    def companion(self, network: nn.Module, total_steps: int) -> Companion | None:
        """What has to be carried through a run of `total_steps` steps beside this network, if anything."""
        return None

    def attack_loss(self, network: nn.Module, images: Tensor) -> Loss:
        """The loss that the training attack ascends, at these clean images."""
        return ce

    def objective(
        self, network: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, training_images: int
    ) -> Objective:
        """The losses of one batch.

        Args:
            network: in training mode.
            images: clean, B x C x H x W in [0, 1].
            adversarial: attacked, same shape; the clean images for a method without an attack.
            labels: int64, B; with a teacher, class probabilities B x K.
            training_images: N, the size of the training set: KL terms are divided by it.
        """
        raise NotImplementedError


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items()}


def _logits(network: nn.Module) -> int:
    """How many logits a network makes of an image."""
    with evaluating(network), torch.no_grad():
        return int(network(example_for(network)).shape[1])


def logits_pair(network: nn.Module, images: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
    """Clean and adversarial logits, from one forward pass with one mask and one batch of BatchNorm."""
    with shared_mask(network):
        logits: Tensor = network(torch.cat([images, adversarial]))
    clean, attacked = logits.chunk(2)
    return clean, attacked


def forward_pair(network: nn.Module, images: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Clean and adversarial logits, and the latent features of both, from one forward pass with one mask."""
    with recorded(network) as features:
        clean, attacked = logits_pair(network, images, adversarial)
    return clean, attacked, features


def mixed_objective(
    network: nn.Module,
    images: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    *,
    adversarial_weight: float,
    vulnerability_weight: float,
    kl_weight: float | None = None,
    gates_see_vulnerability: bool = False,
    robust_loss: PairLoss | None = None,
    reduction: Reduction = "mean",
) -> Objective:
    """The family that AT, AT-VS, ANP and ANP-VS are members of.

        weights:  (CE(f(x), y) + w CE(f(x~), y)) / (1 + w) + lambda V
        gates:     CE(f(x~), y) + k KL  [+ lambda V]

    The KL term does not depend on the weights.

    Args:
        network: in training mode.
        images: clean images.
        adversarial: attacked images.
        labels: of both, int64, B, or class probabilities B x K.
        adversarial_weight: w.
        vulnerability_weight: lambda; 0 leaves V out, so that the network needs no latent features.
        kl_weight: k = beta / N; None for a network without gates.
        gates_see_vulnerability: whether V is part of the gates' loss, as the paper's text has it; the
            released code leaves it out.
        robust_loss: stands in the place of the two weighted cross-entropies in the loss of the weights; None
            keeps them.
        reduction: of V, see `anp_vs.networks.latents.distortion`.

    Raises:
        InputError: V has weight, and the network has no latent features to take it from.
    """
    features: Mapping[str, Tensor] = {}
    if vulnerability_weight:
        clean, attacked, features = forward_pair(network, images, adversarial)
    else:
        clean, attacked = logits_pair(network, images, adversarial)
    clean_loss = functional.cross_entropy(clean, labels)
    attacked_loss = functional.cross_entropy(attacked, labels)
    metrics = {"loss_clean": clean_loss, "loss_adversarial": attacked_loss}
    if robust_loss is None:
        weights = (clean_loss + adversarial_weight * attacked_loss) / (1 + adversarial_weight)
    else:
        weights = robust_loss(clean, attacked, labels)
    if vulnerability_weight:
        metrics["vulnerability"] = distortion(features, reduction, units_held(network, features))
        weights = weights + vulnerability_weight * metrics["vulnerability"]
    gates = None
    if kl_weight is not None:
        kl = kl_weight * total_kl(network).to(weights.dtype)
        gates = attacked_loss + kl
        if gates_see_vulnerability and vulnerability_weight:
            gates = gates + vulnerability_weight * metrics["vulnerability"]
    return Objective(weights, gates, attacked.detach(), clean.detach(), metrics)

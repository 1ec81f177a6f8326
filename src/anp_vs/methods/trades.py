"""TRADES: accuracy traded for robustness by a divergence (Zhang et al. 2019, arXiv 1901.08573).

    weights:  min CE(f(x), y) + beta KL(softmax f(x) || softmax f(x~))
    x~:       max KL(softmax f(x) || softmax f(x~)), from x + 0.001 N(0, 1)

The loss is the mean over the batch of both terms, and its gradient flows through both sides of the
divergence: clean answers are pulled to adversarial ones too. The attack's divergence has a constant target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from anp_vs.attacks.frozen import frozen
from anp_vs.attacks.losses import Loss, kl
from anp_vs.methods.method import Method, Objective, logits_pair
from anp_vs.methods.ranges import in_range

START_RADIUS = 0.001
"""Standard deviation of the noise an attack starts from: at x itself the divergence's gradient is 0."""


def divergence(clean: Tensor, attacked: Tensor) -> Tensor:
    """KL(softmax(clean) || softmax(attacked)) of each image, from logits B x K to B, at least 0."""
    log_clean, log_attacked = clean.log_softmax(1), attacked.log_softmax(1)
    return (log_clean.exp() * (log_clean - log_attacked)).sum(1)


def trades_loss(clean: Tensor, attacked: Tensor, labels: Tensor, beta: float) -> Tensor:
    """CE(clean, y) + beta KL(softmax(clean) || softmax(attacked)), mean over the batch.

    Args:
        clean: logits of the clean images, B x K.
        attacked: logits of the adversarial images, B x K.
        labels: int64, B, or class probabilities B x K.
        beta: weight of the divergence.
    """
    return functional.cross_entropy(clean, labels) + beta * divergence(clean, attacked).mean()


def divergence_attack(network: nn.Module, images: Tensor) -> Loss:
    """The loss that the attack of TRADES ascends: the divergence from the answers to these images."""
    with frozen(network), torch.no_grad():
        return kl(network(images).softmax(1))


@dataclass(frozen=True)
class TRADES(Method):
    """min CE(f(x), y) + beta KL(softmax f(x) || softmax f(x~)).

    Attributes:
        beta: weight of the divergence, >= 0; 1 for MNIST and 6 for CIFAR in the authors' release.
    """

    name: ClassVar[str] = "trades"
    source: ClassVar[str] = "Zhang et al. 2019, arXiv 1901.08573, and released code"
    beta: float = 1.0

    def __post_init__(self) -> None:
        in_range(self, "beta", at_least=0)

    @property
    def start_radius(self) -> float | None:
        """The attack starts at x + 0.001 N(0, 1)."""
        return START_RADIUS

    def attack_loss(self, network: nn.Module, images: Tensor) -> Loss:
        """KL(softmax f(x) || softmax f(x~)) with the clean side constant."""
        return divergence_attack(network, images)

    def objective(
        self, network: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, training_images: int
    ) -> Objective:
        """The loss of one batch."""
        clean, attacked = logits_pair(network, images, adversarial)
        loss = trades_loss(clean, attacked, labels, self.beta)
        return pair_objective(loss, clean, attacked, labels)


def pair_objective(loss: Tensor, clean: Tensor, attacked: Tensor, labels: Tensor) -> Objective:
    """What a step minimises whose loss compares the two halves of a batch, with the parts of it that are logged."""
    metrics = {
        "loss_clean": functional.cross_entropy(clean.detach(), labels),
        "loss_adversarial": functional.cross_entropy(attacked.detach(), labels),
        "divergence": divergence(clean.detach(), attacked.detach()).mean(),
    }
    return Objective(loss, None, attacked.detach(), clean.detach(), metrics)

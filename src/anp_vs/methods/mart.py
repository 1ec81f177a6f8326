"""MART: misclassification-aware adversarial training.

Source: Wang et al. 2020, "Improving Adversarial Robustness Requires Revisiting Misclassified Examples", ICLR.

    weights:  min BCE(f(x~), y) + lambda KL(p(x) || p(x~)) (1 - p_y(x)),    p = softmax f
    BCE(f(x~), y) = -log p_y(x~) - log(1 - max_(k != y) p_k(x~))
    x~:       max CE(f(x~), y), from x + 0.001 N(0, 1)

The divergence counts most where the clean image itself is misclassified.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from anp_vs.methods.method import Method, Objective, logits_pair
from anp_vs.methods.ranges import in_range
from anp_vs.methods.trades import START_RADIUS, divergence, pair_objective


def boosted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p_y - log(1 - max_(k != y) p_k) of each image, from logits B x K and labels B to B."""
    own = labels[:, None]
    strongest = logits.scatter(1, own, -torch.inf).argmax(1, keepdim=True)
    # 1 - p_k is the probability of all classes but k, which stays exact where p_k rounds to 1.
    others = logits.scatter(1, strongest, -torch.inf).logsumexp(1)
    return 2 * logits.logsumexp(1) - logits.gather(1, own).squeeze(1) - others


def mart_loss(clean: Tensor, attacked: Tensor, labels: Tensor, lambda_: float) -> Tensor:
    """BCE(attacked, y) + lambda KL(p(clean) || p(attacked)) (1 - p_y(clean)), mean over the batch.

    Args:
        clean: logits of the clean images, B x K.
        attacked: logits of the adversarial images, B x K.
        labels: int64, B.
        lambda_: weight of the divergence.
    """
    doubt = 1 - clean.softmax(1).gather(1, labels[:, None]).squeeze(1)
    return (boosted_cross_entropy(attacked, labels) + lambda_ * divergence(clean, attacked) * doubt).mean()


@dataclass(frozen=True)
class MART(Method):
    """min BCE(f(x~), y) + lambda KL(p(x) || p(x~)) (1 - p_y(x)).

    Attributes:
        lambda_: weight of the divergence, >= 0; 5 in the authors' release for ResNet-18 on CIFAR-10.
    """

    name: ClassVar[str] = "mart"
    source: ClassVar[str] = "Wang et al. 2020, ICLR, section 3, and released code"
    lambda_: float = 5.0

    def __post_init__(self) -> None:
        in_range(self, "lambda_", at_least=0)

    @property
    def hard_labels(self) -> bool:
        """Its loss asks for the labels themselves."""
        return True

    @property
    def start_radius(self) -> float | None:
        """The attack starts at x + 0.001 N(0, 1)."""
        return START_RADIUS

    def objective(
        self, network: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, training_images: int
    ) -> Objective:
        """The loss of one batch."""
        clean, attacked = logits_pair(network, images, adversarial)
        loss = mart_loss(clean, attacked, labels, self.lambda_)
        return pair_objective(loss, clean, attacked, labels)

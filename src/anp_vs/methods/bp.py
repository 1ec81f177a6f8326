"""BP: Bayesian pruning with Beta-Bernoulli gates on clean images (Lee et al. 2018, arXiv 1805.10896)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from anp_vs.methods.method import Method, Objective
from anp_vs.methods.ranges import in_range
from anp_vs.pruning.gate import total_kl


@dataclass(frozen=True)
class BP(Method):
    """Both groups:  min CE(f(x), y) + beta KL / N.

    Attributes:
        beta: weight of the KL term, >= 0.
    """

    name: ClassVar[str] = "bp"
    source: ClassVar[str] = "Lee et al. 2018, arXiv 1805.10896"
    gated: ClassVar[bool] = True
    adversarial: ClassVar[bool] = False
    beta: float = 1.0

    def __post_init__(self) -> None:
        in_range(self, "beta", at_least=0)

    def objective(
        self, network: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, training_images: int
    ) -> Objective:
        """CE(f(x), y) + beta KL / N of one batch, for both groups; adversarial images are not looked at."""
        logits = network(images)
        loss = functional.cross_entropy(logits, labels)
        total = loss + self.beta / training_images * total_kl(network).to(loss.dtype)
        return Objective(total, total, logits.detach(), logits.detach(), {"loss_clean": loss})

"""Standard: cross-entropy on clean images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from anp_vs.methods.method import Method, Objective


@dataclass(frozen=True)
class Standard(Method):
    """min CE(f(x), y); weight decay is the loop's."""

    name: ClassVar[str] = "standard"
    source: ClassVar[str] = "empirical risk minimisation"
    adversarial: ClassVar[bool] = False

    def objective(
        self, network: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, training_images: int
    ) -> Objective:
        """CE(f(x), y) of one batch; the adversarial images are not looked at."""
        logits = network(images)
        loss = functional.cross_entropy(logits, labels)
        return Objective(loss, None, logits.detach(), logits.detach(), {"loss_clean": loss})

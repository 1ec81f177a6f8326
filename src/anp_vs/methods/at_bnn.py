"""AT-BNN: adversarial training of a Bayesian neural network (Adv-BNN, Liu et al. 2019, arXiv 1810.01279).

    posterior:  min CE(f_w(x~), y) + (alpha / N) KL(q || prior),      w ~ q = N(mu, exp(rho)^2) in every pass
    x~:         PGD on the network in evaluation mode, which draws new weights in every step

KL is the sum over *all* layers. The prior stands in the place of weight decay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from anp_vs.methods.method import Method, Objective
from anp_vs.methods.ranges import in_range
from anp_vs.networks.bayesian import make_bayesian, weights_kl


@dataclass(frozen=True)
class ATBNN(Method):
    """min CE(f_w(x~), y) + (alpha / N) KL(q || prior), w ~ q.

    Attributes:
        alpha: weight of the KL term, >= 0; 0.01 in the released code of the published tables, 1 in Adv-BNN's.
        prior_sigma: standard deviation of the prior, > 0; 1.0 for LeNet and 0.1 for VGG-16 as published.
        initial_rho: initial logarithm of the posterior's standard deviation, in (-20, 2); -3 for LeNet and -5
            for VGG-16 as published.
    """

    name: ClassVar[str] = "at-bnn"
    source: ClassVar[str] = "Liu et al. 2019, arXiv 1810.01279, Algorithm 1"
    random: ClassVar[bool] = True
    weight_decay: ClassVar[bool] = False
    alpha: float = 0.01
    prior_sigma: float = 1.0
    initial_rho: float = -3.0

    def __post_init__(self) -> None:
        in_range(self, "alpha", at_least=0)
        in_range(self, "prior_sigma", above=0)
        in_range(self, "initial_rho", above=-20, below=2)

    def prepare(self, network: nn.Module) -> nn.Module:
        """Turn every convolution and dense layer into a Bayesian one, with the present weights as means."""
        return make_bayesian(network, self.prior_sigma, self.initial_rho)

    def objective(
        self, network: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, training_images: int
    ) -> Objective:
        """The loss of one batch; the clean images are not looked at."""
        logits = network(adversarial)
        loss = functional.cross_entropy(logits, labels)
        kl = weights_kl(network)
        total = loss + self.alpha / training_images * kl
        return Objective(total, None, logits.detach(), None, {"loss_adversarial": loss, "kl": kl})

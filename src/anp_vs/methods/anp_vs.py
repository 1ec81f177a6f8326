"""ANP and ANP-VS: adversarial neural pruning, without and with latent vulnerability suppression.

Source: Madaan, Shin, Hwang (ICML 2020), Algorithm 1.

    x~       = PGD on the current network in evaluation mode
    weights:   min (CE(f(x), y) + w CE(f(x~), y)) / (1 + w) + beta KL / N + lambda V
    gates:     min CE(f(x~), y) + beta KL / N   [+ lambda V with gate_loss = adversarial+vulnerability]

The KL term does not depend on the weights. With gates the mask sample is the same for x and x~, so V holds
the features' movement and not the difference of two masks.

Beyond the paper, `adversarial_loss` puts the loss of TRADES or MART in the place of the two cross-entropies
of the weights, and trains against that method's attack; the loss of the gates keeps its form.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, get_args

from torch import Tensor, nn

from anp_vs.attacks.losses import Loss
from anp_vs.methods.mart import mart_loss
from anp_vs.methods.method import Method, Objective, PairLoss, mixed_objective
from anp_vs.methods.ranges import in_range, one_of
from anp_vs.methods.trades import START_RADIUS, divergence_attack, trades_loss
from anp_vs.networks.latents import Reduction

GateLoss = Literal["adversarial", "adversarial+vulnerability"]
AdversarialLoss = Literal["ce", "trades", "mart"]


@dataclass(frozen=True)
class ANP(Method):
    """Adversarial neural pruning: gates learn from adversarial images what to drop.

    Attributes:
        beta: weight of the KL term, >= 0: larger prunes more.
        adversarial_weight: w, > 0.
    """

    name: ClassVar[str] = "anp"
    source: ClassVar[str] = "Madaan, Shin, Hwang 2020, section 5.3 (ablation, lambda = 0)"
    gated: ClassVar[bool] = True
    beta: float = 4.0
    adversarial_weight: float = 2.0

    def __post_init__(self) -> None:
        in_range(self, "beta", at_least=0)
        in_range(self, "adversarial_weight", above=0)

    def objective(
        self, network: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, training_images: int
    ) -> Objective:
        """The losses of one batch."""
        return mixed_objective(
            network, images, adversarial, labels,
            adversarial_weight=self.adversarial_weight, vulnerability_weight=0.0,
            kl_weight=self.beta / training_images,
        )  # fmt: skip


@dataclass(frozen=True)
class ANPVS(Method):
    """Adversarial neural pruning with latent vulnerability suppression.

    Attributes:
        beta: weight of the KL term, >= 0: larger prunes more.
        lambda_: weight of the vulnerability V, >= 0.
        adversarial_weight: w, > 0; only for the adversarial loss `ce`.
        gate_loss: whether the gates see V too (the paper's text) or not (the released code).
        adversarial_loss: what the weights learn robustness by: `ce`, the weighted cross-entropies of the
            paper; `trades`, CE(f(x), y) + r KL(f(x) || f(x~)); or `mart`, see `anp_vs.methods.mart`.
        robust_weight: r, >= 0: beta of `trades` or lambda of `mart`; not used by `ce`.
        reduction: V as the mean over a layer's elements (the released code and the published lambdas) or as their
            sum (the formula of the paper's text: thousands of times as large).
    """

    name: ClassVar[str] = "anp-vs"
    source: ClassVar[str] = "Madaan, Shin, Hwang 2020, Algorithm 1"
    gated: ClassVar[bool] = True
    beta: float = 4.0
    lambda_: float = 1e-3
    adversarial_weight: float = 2.0
    gate_loss: GateLoss = "adversarial"
    adversarial_loss: AdversarialLoss = "ce"
    robust_weight: float = 6.0
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        for field in ("beta", "lambda_", "robust_weight"):
            in_range(self, field, at_least=0)
        in_range(self, "adversarial_weight", above=0)
        one_of(self, "gate_loss", get_args(GateLoss))
        one_of(self, "adversarial_loss", get_args(AdversarialLoss))
        one_of(self, "reduction", get_args(Reduction))

    @property
    def sees_latents(self) -> bool:
        """V is left out where lambda is 0."""
        return self.lambda_ > 0

    @property
    def hard_labels(self) -> bool:
        """MART's loss asks for the labels themselves."""
        return self.adversarial_loss == "mart"

    @property
    def start_radius(self) -> float | None:
        """Of the adversarial loss's own attack."""
        return None if self.adversarial_loss == "ce" else START_RADIUS

    def attack_loss(self, network: nn.Module, images: Tensor) -> Loss:
        """Of the adversarial loss's own attack: the divergence for `trades`, cross-entropy for the others."""
        if self.adversarial_loss == "trades":
            return divergence_attack(network, images)
        return super().attack_loss(network, images)

    def objective(
        self, network: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, training_images: int
    ) -> Objective:
        """The losses of one batch."""
        robust_loss: PairLoss | None = None
        if self.adversarial_loss == "trades":
            robust_loss = partial(trades_loss, beta=self.robust_weight)
        elif self.adversarial_loss == "mart":
            robust_loss = partial(mart_loss, lambda_=self.robust_weight)
        return mixed_objective(
            network, images, adversarial, labels,
            adversarial_weight=self.adversarial_weight, vulnerability_weight=self.lambda_,
            kl_weight=self.beta / training_images, gates_see_vulnerability=self.gate_loss != "adversarial",
            robust_loss=robust_loss, reduction=self.reduction,
        )  # fmt: skip

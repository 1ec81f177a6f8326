"""AT and AT-VS: adversarial training (Madry et al. 2018, arXiv 1706.06083), without and with suppression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

from torch import Tensor, nn

from anp_vs.methods.method import Method, Objective, mixed_objective
from anp_vs.methods.ranges import in_range, one_of
from anp_vs.networks.latents import Reduction


@dataclass(frozen=True)
class AT(Method):
    """min (CE(f(x), y) + w CE(f(x~), y)) / (1 + w).

    Attributes:
        adversarial_weight: w, > 0; 2 in the published tables' AT rows, larger is closer to Madry et al.
    """

    name: ClassVar[str] = "at"
    source: ClassVar[str] = "Madry et al. 2018, arXiv 1706.06083; mixed 1:2 as in the published tables"
    adversarial_weight: float = 2.0

    def __post_init__(self) -> None:
        in_range(self, "adversarial_weight", above=0)

    def objective(
        self, network: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, training_images: int
    ) -> Objective:
        """The loss of one batch."""
        return mixed_objective(
            network, images, adversarial, labels,
            adversarial_weight=self.adversarial_weight, vulnerability_weight=0.0,
        )  # fmt: skip


@dataclass(frozen=True)
class ATVS(Method):
    """min (CE(f(x), y) + w CE(f(x~), y)) / (1 + w) + lambda V: vulnerability suppression without pruning.

    Attributes:
        adversarial_weight: w, > 0.
        lambda_: weight of the vulnerability V, >= 0.
        reduction: of V over a layer's elements, `mean` or `sum`, see `anp_vs.methods.anp_vs`.
    """

    name: ClassVar[str] = "at-vs"
    source: ClassVar[str] = "Madaan, Shin, Hwang 2020, section 5.3 (ablation)"
    adversarial_weight: float = 2.0
    lambda_: float = 1e-3
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        in_range(self, "adversarial_weight", above=0)
        in_range(self, "lambda_", at_least=0)
        one_of(self, "reduction", get_args(Reduction))

    @property
    def sees_latents(self) -> bool:
        """V is left out where lambda is 0."""
        return self.lambda_ > 0

    def objective(
        self, network: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, training_images: int
    ) -> Objective:
        """The loss of one batch."""
        return mixed_objective(
            network, images, adversarial, labels,
            adversarial_weight=self.adversarial_weight, vulnerability_weight=self.lambda_, reduction=self.reduction,
        )  # fmt: skip

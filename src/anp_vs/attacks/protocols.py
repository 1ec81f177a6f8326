"""Two ways to train and evaluate under attack, which must never share a column.

`pixel-space` (default): images in [0, 1] are attacked, normalisation is inside the network, eps is in pixel
units.

`released-code`: how the CIFAR rows of the published tables were made. The released code standardises each
image (zero mean, unit variance over its own pixels), attacks that tensor with eps in units of its standard
deviation, and then clips it to [0, 1]. Clipping alone flattens about two thirds of the values, before any
attack; the figures say little about robustness and are there only to compare with the published ones. MNIST
is not standardised there, so on grey images the two protocols are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from anp_vs.attacks import geometry, losses
from anp_vs.attacks.geometry import Norm
from anp_vs.attacks.noise import Source, uniform
from anp_vs.attacks.pgd import ascend, pgd
from anp_vs.attacks.prediction import check_logits
from anp_vs.errors import InputError
from anp_vs.networks.copying import copied
from anp_vs.networks.layers import Normalize, Standardise
from anp_vs.pruning.slicing import replace

ProtocolName = Literal["pixel-space", "released-code"]


@dataclass(frozen=True)
class Budget:
    """What an attacker may do.

    Attributes:
        eps: radius, >= 0, in pixel units (`released-code`: in units of the image's standard deviation).
        step: length of a PGD step, same units.
        steps: PGD steps.
        norm: of the ball.
    """

    eps: float
    step: float
    steps: int
    norm: Norm = "inf"


class EvaluationProtocol(Protocol):
    """What a network is shown, and how it is attacked there."""

    @property
    def name(self) -> ProtocolName:
        """As options spell it."""

    def prepare(self, images: Tensor) -> Tensor:
        """What the network is shown for images N x C x H x W in [0, 1]."""

    def adapt(self, network: nn.Module) -> nn.Module:
        """The network that takes what `prepare` gives."""

    def box(self, shown: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """The lowest and the highest that an attacker may make of it in the inf norm."""

    def attack(
        self, network: nn.Module, shown: Tensor, labels: Tensor, budget: Budget, *, loss: str, draws: int,
        generator: Source,
    ) -> Tensor:  # fmt: skip
        """PGD on what the network is shown."""


@dataclass(frozen=True)
class PixelSpace:
    """Attack the pixels."""

    name: ProtocolName = "pixel-space"

    def prepare(self, images: Tensor) -> Tensor:
        """The images themselves."""
        return images

    def adapt(self, network: nn.Module) -> nn.Module:
        """The network itself."""
        return network

    def box(self, shown: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """`anp_vs.attacks.geometry.box`."""
        return geometry.box(shown, eps)

    def attack(
        self, network: nn.Module, shown: Tensor, labels: Tensor, budget: Budget, *, loss: str, draws: int,
        generator: Source,
    ) -> Tensor:  # fmt: skip
        """`anp_vs.attacks.pgd` from one random start."""
        return pgd(
            network, shown, labels, eps=budget.eps, step=budget.step, steps=budget.steps, norm=budget.norm,
            loss=loss, draws=draws, generator=generator,
        )  # fmt: skip


@dataclass(frozen=True)
class ReleasedCode:
    """Attack per-image standardised tensors and clip them to [0, 1], as the released code does."""

    name: ProtocolName = "released-code"

    def prepare(self, images: Tensor) -> Tensor:
        """Standardised images; grey ones stay as they are."""
        return images if images.shape[1] == 1 else Standardise()(images)

    def adapt(self, network: nn.Module) -> nn.Module:
        """A copy in which the network's own normalisation, if it has one, does nothing.

        The released network takes standardised tensors and has no normalisation (`vgg16-standardised` standardises
        by itself, so that it can be shown pixels, too). One that was trained on pixels normalises by the mean and
        deviation of the data set, which gives it nearly the same tensor.
        """
        adapted = copied(network)
        for path, module in list(adapted.named_modules()):
            if isinstance(module, Standardise) or (isinstance(module, Normalize) and module.mean.numel() > 1):
                replace(adapted, path, nn.Identity())
        return adapted

    def box(self, shown: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Clipped to the ball around the tensor first and to [0, 1] after it, which leaves no choice outside of [0, 1]."""
        if shown.shape[1] == 1:
            return PixelSpace().box(shown, eps)
        return (shown - eps).clamp_(0.0, 1.0), (shown + eps).clamp_(0.0, 1.0)

    @torch.no_grad()
    def attack(
        self, network: nn.Module, shown: Tensor, labels: Tensor, budget: Budget, *, loss: str, draws: int,
        generator: Source,
    ) -> Tensor:  # fmt: skip
        """PGD whose points are clipped to the ball around the tensor first and to [0, 1] after it.

        Raises:
            InputError: another norm than "inf".
        """
        if budget.norm != "inf":
            raise InputError(f"the released-code protocol is made for norm 'inf', not {budget.norm!r}.")
        if shown.shape[1] == 1:
            return PixelSpace().attack(network, shown, labels, budget, loss=loss, draws=draws, generator=generator)
        geometry.check_budget(budget.eps, budget.norm, budget.step, budget.steps)
        check_logits(network(shown[:1]), labels[:1])
        lower, upper = self.box(shown, budget.eps)
        offset = (2 * uniform(shown.shape, generator, shown) - 1) * budget.eps
        start = torch.clamp(shown + offset, lower, upper)
        return ascend(network, start, lower, upper, labels, budget.step, budget.steps, losses.by_name(loss), draws)


def protocol_by_name(name: str) -> EvaluationProtocol:
    """The protocol called `pixel-space` or `released-code`.

    Raises:
        InputError: another name.
    """
    found: dict[str, EvaluationProtocol] = {p.name: p for p in (PixelSpace(), ReleasedCode())}
    if name not in found:
        raise InputError(f"protocol is {name!r}; choose {' or '.join(found)}.")
    return found[name]

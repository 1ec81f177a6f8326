"""Fast gradient (sign) method, Goodfellow et al. 2015 (arXiv 1412.6572)."""

from torch import Tensor, nn

from anp_vs.attacks.geometry import Norm
from anp_vs.attacks.losses import Loss
from anp_vs.attacks.noise import Source
from anp_vs.attacks.pgd import pgd


def fgsm(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "inf",
    loss: str | Loss = "ce",
    draws: int = 1,
    generator: Source = None,
) -> Tensor:
    """One step of steepest ascent of length eps from the clean image.

    Args:
        network: float images in [0, 1] to logits N x K.
        images: float32, N x C x H x W in [0, 1].
        labels: int64, N.
        eps: radius in pixel units, >= 0; 0 returns the images.
        norm: of the ball, "inf", "2" or "1".
        loss: "ce", "dlr", "margin", or a function of logits and labels.
        draws: forward passes averaged in the gradient, for a network that is random in evaluation mode.
        generator: unused by a single deterministic step, accepted so that attacks can be exchanged.

    Returns:
        Adversarial images shaped like `images`.

    Raises:
        InputError: for images, labels or a budget outside what is accepted.
    """
    if eps == 0:
        return pgd(network, images, labels, eps=0.0, step=1.0, steps=1, norm=norm)
    return pgd(
        network,
        images,
        labels,
        eps=eps,
        step=eps,
        steps=1,
        norm=norm,
        loss=loss,
        random_start=False,
        draws=draws,
        generator=generator,
    )

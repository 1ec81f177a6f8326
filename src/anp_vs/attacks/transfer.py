"""Black-box attack by transfer: craft on networks one has, use on one that one has not."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from anp_vs.errors import InputError


def transfer(
    sources: nn.Module | Sequence[nn.Module],
    images: Tensor,
    labels: Tensor,
    *,
    attack: Callable[[nn.Module, Tensor, Tensor], Tensor],
) -> Tensor:
    """Adversarial images crafted on the source networks; classify them with the target afterwards.

    Several sources are attacked together through the mean of their probabilities (Liu et al. 2017,
    arXiv 1611.02770).

    Args:
        sources: one network, or several with the same classes.
        images: float32, N x C x H x W in [0, 1].
        labels: int64, N.
        attack: such as `functools.partial(pgd, eps=0.3, step=0.01, steps=40)`.

    Returns:
        Adversarial images shaped like `images`.

    Raises:
        InputError: no source, or what `attack` refuses.
    """
    networks = [sources] if isinstance(sources, nn.Module) else list(sources)
    if not networks:
        raise InputError("no source network was given; transfer needs at least one network to craft the images on.")
    return attack(networks[0] if len(networks) == 1 else Ensemble(networks), images, labels)


class Ensemble(nn.Module):
    """Several networks with the same classes as one: the logarithm of the mean of their probabilities."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities, N x K."""
        return torch.stack([member(images).log_softmax(dim=1) for member in self.members]).logsumexp(dim=0)

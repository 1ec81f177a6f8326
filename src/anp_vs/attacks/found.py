"""The best adversarial image found so far for each image of a batch."""

import torch
from torch import Tensor

_ROUNDING = 1e-5  # of the largest logit; a smaller margin may change sign with the batch size


class Found:
    """For each image the allowed image offered with the largest margin max_{i != y} z_i - z_y.

    A positive margin is a misclassification. An image within rounding of the decision boundary counts as
    pending still, so that what is returned is also misclassified when it is evaluated in a batch of another
    size.

    Args:
        images: the clean images, N x C x H x W.
        margin: their margins, N.
        logits: their logits, N x K, which give the scale of rounding.
    """

    def __init__(self, images: Tensor, margin: Tensor, logits: Tensor) -> None:
        self.images = images.clone()
        self.margin = margin.clone()
        self._tolerance = _ROUNDING * logits.abs().amax(dim=1)

    def pending(self) -> Tensor:
        """Indices (int64) of the images that no attack has clearly broken yet."""
        return (self.margin <= self._tolerance).nonzero().squeeze(1)

    def offer(self, indices: Tensor, images: Tensor, margin: Tensor) -> None:
        """Take `images` for those of `indices` whose margin they raise."""
        better = margin > self.margin[indices]
        chosen = indices[better]
        self.images[chosen] = images[better]
        self.margin[chosen] = margin[better]

    def settled(self, indices: Tensor, margin: Tensor) -> bool:
        """Whether `margin` clearly breaks every image of `indices`, so that a run on them can stop."""
        return bool((margin > self._tolerance[indices]).all())


def keep_higher(images: Tensor, margin: Tensor, offered: Tensor, offered_margin: Tensor) -> tuple[Tensor, Tensor]:
    """Image by image the one with the higher margin, and that margin."""
    better = offered_margin > margin
    return torch.where(better[:, None, None, None], offered, images), torch.where(better, offered_margin, margin)

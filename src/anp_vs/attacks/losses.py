"""Losses an attack ascends: functions of logits (N x K) and labels (N) to one value an image (N)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from anp_vs.errors import InputError

Loss = Callable[[Tensor, Tensor], Tensor]


def ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, -log softmax(z)_y."""
    return F.cross_entropy(logits, labels, reduction="none")


def kl(clean_probabilities: Tensor) -> Loss:
    """KL(p || softmax(z)) to the given clean probabilities p (N x K); the labels are not looked at.

    Source: the inner maximisation of Zhang et al. 2019 (TRADES, arXiv 1901.08573).
    """
    target = clean_probabilities.detach()

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.kl_div(F.log_softmax(logits, dim=1), target, reduction="none").sum(dim=1)

    return loss


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{i != y} z_i - z_y (Carlini & Wagner 2017); positive exactly where misclassified."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    rest = logits.scatter(1, labels[:, None], -torch.inf)
    return rest.amax(dim=1) - own


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, (max_{i != y} z_i - z_y) / (z_(1) - z_(3)), z_(k) the k-th largest logit.

    Source: Croce & Hein 2020 (arXiv 2003.01690, section 4). With two classes there is no z_(3): the ratio
    would be constant, so the margin itself is used.
    """
    if logits.shape[1] < 3:
        return margin(logits, labels)
    largest = logits.topk(3, dim=1).values
    return margin(logits, labels) / (largest[:, 0] - largest[:, 2] + 1e-12)


def targeted_dlr(targets: Tensor) -> Loss:
    """Targeted difference of logits ratio, (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2), t the targets (N).

    Source: Croce & Hein 2020 (arXiv 2003.01690, section 4). With fewer than four classes there is no z_(4),
    and over z_(1) - z_(3) the ratio is constant for the least likely t: then the difference itself is used.
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        difference = logits.gather(1, targets[:, None]).squeeze(1) - logits.gather(1, labels[:, None]).squeeze(1)
        if logits.shape[1] < 4:
            return difference
        largest = logits.topk(4, dim=1).values
        return difference / (largest[:, 0] - largest[:, 2:].mean(dim=1) + 1e-12)

    return loss


_BY_NAME: dict[str, Loss] = {"ce": ce, "dlr": dlr, "margin": margin}


def by_name(loss: str | Loss) -> Loss:
    """The loss called "ce", "dlr" or "margin", or the given function itself.

    Raises:
        InputError: for another name.
    """
    if not isinstance(loss, str):
        return loss
    if loss not in _BY_NAME:
        raise InputError(f"loss is {loss!r}; it must be one of {', '.join(map(repr, _BY_NAME))} or a function.")
    return _BY_NAME[loss]

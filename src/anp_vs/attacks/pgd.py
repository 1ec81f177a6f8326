"""Projected gradient descent, Madry et al. 2018 (arXiv 1706.06083)."""

import torch
from torch import Tensor, nn

from anp_vs.attacks import geometry, losses
from anp_vs.attacks.frozen import frozen
from anp_vs.attacks.geometry import Norm
from anp_vs.attacks.losses import Loss
from anp_vs.attacks.noise import Source
from anp_vs.attacks.prediction import Network, checked, input_gradient, predict
from anp_vs.errors import InputError


def pgd(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    step: float,
    steps: int,
    norm: Norm = "inf",
    restarts: int = 1,
    loss: str | Loss = "ce",
    random_start: bool = True,
    draws: int = 1,
    generator: Source = None,
) -> Tensor:
    """Ascend the loss by `steps` projected steps of length `step`; the last point of the best restart.

    Args:
        network: float images in [0, 1] to logits N x K; attacked in evaluation mode, left as it was.
        images: float32, N x C x H x W in [0, 1].
        labels: int64, N.
        eps: radius in pixel units, >= 0; 0 returns the images.
        step: length of a step in pixel units, > 0.
        steps: >= 1.
        norm: of the ball and of the step, "inf", "2" or "1".
        restarts: >= 1 independent runs; each image keeps a misclassified result before a correct one, and the
            one with the highest loss among equals.
        loss: "ce", "dlr", "margin", or a function of logits and labels to one value an image.
        random_start: start at a random point of the ball, not at the image; later restarts always do.
        draws: forward passes averaged in each gradient (expectation over noise, Athalye et al. 2018,
            arXiv 1802.00420), for a network that is random in evaluation mode.
        generator: of the random starts; the global one when None.

    Returns:
        Adversarial images shaped like `images`, in the threat model exactly.

    Raises:
        InputError: for images, labels or a budget outside what is accepted, or logits that do not fit.
    """
    geometry.check_images(images, labels)
    geometry.check_budget(eps, norm, step, steps)
    if restarts < 1 or draws < 1:
        raise InputError(f"restarts is {restarts} and draws is {draws}; both must be at least 1.")
    loss_fn = losses.by_name(loss)
    if eps == 0:
        return images.clone()
    images = images.detach()
    best = images
    best_score = torch.full((len(images),), -torch.inf, dtype=images.dtype, device=images.device)
    best_broken = torch.zeros_like(labels, dtype=torch.bool)
    with frozen(network):
        attacked = checked(network, labels)
        bounds = geometry.box(images, eps) if norm == "inf" else None
        for restart in range(restarts):
            start = images
            if random_start or restart > 0:
                start = geometry.random_start(images, eps, norm, generator)
            if bounds is not None:
                result = ascend(attacked, start, *bounds, labels, step, steps, loss_fn, draws)
            else:
                result = _ascend_projected(attacked, images, start, labels, eps, step, steps, norm, loss_fn, draws)
                result = geometry.confine(images, result, eps, norm)
            if restarts == 1:
                return result
            logits = predict(attacked, result, draws)
            score, broken = loss_fn(logits, labels), logits.argmax(1) != labels
            better = (broken & ~best_broken) | ((broken == best_broken) & (score > best_score))
            best = torch.where(better[:, None, None, None], result, best)
            best_score = torch.where(better, score, best_score)
            best_broken |= broken
    return best


def ascend(
    network: Network,
    start: Tensor,
    lower: Tensor,
    upper: Tensor,
    labels: Tensor,
    step: float,
    steps: int,
    loss_fn: Loss,
    draws: int = 1,
) -> Tensor:
    """The inf-norm loop alone, unchecked, for a caller that holds a network that is frozen already.

    Nothing waits for the device inside, parameters receive no gradient, and the perturbation stays in the
    precision of `start` whatever precision the network computes in.

    Args:
        network: images to logits, in evaluation mode, parameters without gradients.
        start: N x C x H x W; not changed.
        lower: least value of every pixel, as from `geometry.box`.
        upper: largest value of every pixel.
        labels: int64, N.
        step: length of a step in pixel units.
        steps: number of steps.
        loss_fn: logits and labels to one value an image.
        draws: forward passes averaged in each gradient.

    Returns:
        The images after the last step, without gradient history.
    """
    current = start.detach().clone()
    for _ in range(steps):
        direction = input_gradient(network, current, labels, loss_fn, draws).sign()
        current = current.detach().add_(direction, alpha=step)
        torch.clamp(current, lower, upper, out=current)
    return current


def _ascend_projected(
    network: Network,
    images: Tensor,
    start: Tensor,
    labels: Tensor,
    eps: float,
    step: float,
    steps: int,
    norm: Norm,
    loss_fn: Loss,
    draws: int,
) -> Tensor:
    current, project = start, geometry.projector(images, eps, norm)
    for _ in range(steps):
        gradient = input_gradient(network, current, labels, loss_fn, draws)
        current = project(geometry.step(current, gradient, step, norm))
    return current

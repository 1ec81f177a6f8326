"""Targeted Fast Adaptive Boundary attack, Croce & Hein 2020 (arXiv 1907.02044)."""

import torch
from torch import Tensor, nn

from anp_vs.attacks import geometry, losses
from anp_vs.attacks.found import Found, keep_higher
from anp_vs.attacks.frozen import frozen
from anp_vs.attacks.geometry import Norm, per_image
from anp_vs.attacks.hyperplane import to_hyperplane
from anp_vs.attacks.losses import Loss
from anp_vs.attacks.noise import Source, select
from anp_vs.attacks.prediction import Network, averaged, checked, predict, ranked_targets, value_and_gradient
from anp_vs.errors import InputError

_BIAS_MAX = 0.1  # alpha_max: largest weight of the step that starts at the clean image
_OVERSHOOT = 1.05  # eta: how far past the linearised boundary a step goes
_BACKWARD = 0.9  # beta: share of the perturbation kept after the boundary was crossed


def fab(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "inf",
    steps: int = 100,
    restarts: int = 1,
    targets: int = 9,
    draws: int = 1,
    generator: Source = None,
) -> Tensor:
    """Look for the closest image beyond the boundary to each target class; keep what lies in the eps-ball.

    Each step linearises z_t - z_y, projects the current and the clean image onto the hyperplane where it is
    zero, inside [0, 1], and goes to a mixture of both, a little beyond. After a crossing it goes back towards
    the clean image.

    Args:
        network: float images in [0, 1] to logits N x K; attacked in evaluation mode, left as it was.
        images: float32, N x C x H x W in [0, 1].
        labels: int64, N.
        eps: radius in pixel units, >= 0; 0 returns the images.
        norm: of the ball and of the distance, "inf", "2" or "1".
        steps: steps of one run, >= 1.
        restarts: runs a target; the first starts at the image, later ones at random within eps / 2.
        targets: the most likely wrong classes gone for in turn, >= 1 (at most K - 1).
        draws: passes whose probabilities are averaged, for a network that is random in evaluation mode.
        generator: of the random starts.

    Returns:
        Images shaped like `images`, in the threat model exactly; the clean image where nothing was found in
        the ball.

    Raises:
        InputError: for images, labels or a budget outside what is accepted, or logits that do not fit.
    """
    geometry.check_images(images, labels)
    geometry.check_budget(eps, norm, steps=steps)
    if restarts < 1 or targets < 1 or draws < 1:
        raise InputError(f"restarts is {restarts}, targets {targets}, draws {draws}; each must be at least 1.")
    images = images.detach()
    with frozen(network):
        attacked = averaged(checked(network, labels), draws)
        logits = predict(attacked, images)
        if eps == 0:
            return images.clone()
        found = Found(images, losses.margin(logits, labels), logits)
        for goal in ranked_targets(logits, labels, targets):
            for restart in range(restarts):
                rows = found.pending()
                if len(rows) == 0:
                    break
                start = clean = images[rows]
                if restart > 0:
                    start = geometry.random_start(clean, eps / 2, norm, select(generator, rows))
                _approach(attacked, clean, start, labels[rows], goal[rows], eps, norm, steps, found, rows)
    return geometry.confine(images, found.images, eps, norm)


def _approach(
    network: Network,
    images: Tensor,
    start: Tensor,
    labels: Tensor,
    targets: Tensor,
    eps: float,
    norm: Norm,
    steps: int,
    found: Found,
    rows: Tensor,
) -> None:
    """One run; offers to `found` the misclassified image with the largest margin inside the ball."""
    current = start
    candidate, margin = images, torch.full_like(images[:, 0, 0, 0], -torch.inf)
    towards = _difference_to(targets)
    for index in range(steps):
        difference, slope, _ = value_and_gradient(network, current, labels, towards)
        difference = difference.to(slope.dtype)  # of images, also where the logits are float64
        # z_t - z_y vanishes, to first order, at x + d with <slope, x - current + d> = -difference.
        from_clean = -difference - (slope * (images - current)).flatten(1).sum(dim=1)
        near = to_hyperplane(current, slope, -difference, norm)
        far = to_hyperplane(images, slope, from_clean, norm)
        near_size, far_size = _size(near, norm).clamp_(min=1e-8), _size(far, norm).clamp_(min=1e-8)
        bias = per_image((near_size / (near_size + far_size)).clamp_(max=_BIAS_MAX), near)
        current = (current + _OVERSHOOT * near) * (1 - bias) + (images + _OVERSHOOT * far) * bias
        current = current.clamp_(0.0, 1.0)
        reached = losses.margin(predict(network, current), labels)
        crossed = reached > 0
        inside = crossed & (_size(current - images, norm) <= eps)
        offered = torch.where(inside, reached, torch.full_like(reached, -torch.inf))
        candidate, margin = keep_higher(candidate, margin, current, offered)
        current = torch.where(per_image(crossed, current), images + _BACKWARD * (current - images), current)
        if index % 10 == 9 and found.settled(rows, margin):
            break
    found.offer(rows, candidate, margin)


def _difference_to(targets: Tensor) -> Loss:
    def difference(logits: Tensor, labels: Tensor) -> Tensor:
        return logits.gather(1, targets[:, None]).squeeze(1) - logits.gather(1, labels[:, None]).squeeze(1)

    return difference


def _size(delta: Tensor, norm: Norm) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(delta.flatten(1), ord=float(norm), dim=1)
    return size

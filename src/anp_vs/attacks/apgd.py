"""Auto-PGD, Croce & Hein 2020 (arXiv 2003.01690), and its 1-norm form of 2021 (arXiv 2103.01208)."""

import torch
from torch import Tensor, nn

from anp_vs.attacks import geometry, losses
from anp_vs.attacks.found import Found, keep_higher
from anp_vs.attacks.frozen import frozen
from anp_vs.attacks.geometry import Norm, per_image
from anp_vs.attacks.losses import Loss
from anp_vs.attacks.noise import Source, normal, select
from anp_vs.attacks.prediction import Network, checked, predict, ranked_targets, value_and_gradient
from anp_vs.errors import InputError

_MOMENTUM = 0.75
_RISING_SHARE = 0.75  # rho: fewer rising steps than this since the last checkpoint halve the step
_FIRST_PERIOD, _PERIOD_DECREASE, _LEAST_PERIOD = 0.22, 0.03, 0.06  # checkpoints, in shares of all steps

_SHORTENING = 1.5  # 1-norm: divisor of the step while the perturbation gets no sparser
_LONGEST_OVER_SHORTEST = 10.0
_SPARSER = 0.95  # 1-norm: ratio of non-zero coordinates that counts as sparser
_STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # 1-norm: radius in eps, share of all steps


def apgd(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "inf",
    steps: int = 100,
    restarts: int = 1,
    loss: str | Loss = "ce",
    targets: int = 0,
    draws: int = 1,
    generator: Source = None,
) -> Tensor:
    """Projected ascent with momentum whose step is halved, from the best point so far, when progress stalls.

    Args:
        network: float images in [0, 1] to logits N x K; attacked in evaluation mode, left as it was.
        images: float32, N x C x H x W in [0, 1].
        labels: int64, N.
        eps: radius in pixel units, >= 0; 0 returns the images.
        norm: of the ball, "inf", "2" or "1".
        steps: gradient steps of one run, >= 1.
        restarts: runs from random starts, for each target if there are targets; broken images leave early.
        loss: "ce", "dlr", "margin", or a function of logits and labels; not used with targets.
        targets: when above 0, the targeted DLR is ascended towards each of this many most likely wrong classes
            in turn (at most K - 1).
        draws: forward passes averaged in each gradient, for a network that is random in evaluation mode.
        generator: of the random starts.

    Returns:
        Images shaped like `images`, in the threat model exactly: for each the one with the largest margin
        max_{i != y} z_i - z_y that was met, misclassified where the attack succeeded.

    Raises:
        InputError: for images, labels or a budget outside what is accepted, or logits that do not fit.
    """
    geometry.check_images(images, labels)
    geometry.check_budget(eps, norm, steps=steps)
    if restarts < 1 or draws < 1 or targets < 0:
        raise InputError(
            f"restarts is {restarts}, draws {draws}, targets {targets}; the first two must be at least 1, "
            "targets at least 0 (0: untargeted)."
        )
    loss_fn = losses.by_name(loss)
    images = images.detach()
    with frozen(network):
        attacked = checked(network, labels)
        logits = predict(attacked, images, draws)
        if eps == 0:
            return images.clone()
        found = Found(images, losses.margin(logits, labels), logits)
        goals = ranked_targets(logits, labels, targets) if targets else [None]
        for goal in goals:
            for _ in range(restarts):
                rows = found.pending()
                if len(rows) == 0:
                    break
                if goal is not None:
                    loss_fn = losses.targeted_dlr(goal[rows])
                run = _Run(attacked, images[rows], labels[rows], norm, loss_fn, draws, found, rows)
                run.climb(eps, steps, select(generator, rows))
    return geometry.confine(images, found.images, eps, norm)


class _Run:
    """One run on a part of the batch; offers the best image met to `found`."""

    def __init__(
        self,
        network: Network,
        images: Tensor,
        labels: Tensor,
        norm: Norm,
        loss_fn: Loss,
        draws: int,
        found: Found,
        rows: Tensor,
    ) -> None:
        self.network, self.images, self.labels, self.norm = network, images, labels, norm
        self.loss_fn, self.draws, self.found, self.rows = loss_fn, draws, found, rows

    def climb(self, eps: float, steps: int, generator: Source) -> None:
        """Ascend from a random start; in the 1-norm through balls of 3, 2 and 1 eps, as l1-APGD does."""
        if self.norm != "1":
            start = geometry.random_start(self.images, eps, self.norm, generator)
            self._ascend(start, eps, steps, _Halving(self.images, eps, steps, self.norm))
            return
        start = self.images + normal(self.images.shape, generator, self.images)  # far out: its projection is sparse
        left = steps
        for radius, share in _STAGES:
            count = left if radius == 1.0 else min(round(share * steps), left)
            left -= count
            start = geometry.project(self.images, start, radius * eps, "1")
            rule = _Sparsity(self.images, start, radius * eps, count)
            start = self._ascend(start, radius * eps, count, rule, allowed=radius == 1.0)

    def _ascend(
        self, start: Tensor, eps: float, steps: int, rule: "_Halving | _Sparsity", allowed: bool = True
    ) -> Tensor:
        """The point of highest loss; what is met in a ball that is `allowed` is offered to `found`."""
        project = geometry.projector(self.images, eps, self.norm)
        current = previous = best = start
        value, gradient, logits = self._evaluate(start)
        best_value, best_gradient = value, gradient
        candidate, margin = start, losses.margin(logits, self.labels)
        for index in range(steps):
            moved = project(rule.step(current, gradient))
            if self.norm != "1":
                share = _MOMENTUM if index > 0 else 1.0
                moved = project(current + share * (moved - current) + (1.0 - share) * (current - previous))
            previous, current = current, moved
            last_value = value
            value, gradient, logits = self._evaluate(current)
            candidate, margin = keep_higher(candidate, margin, current, losses.margin(logits, self.labels))
            higher = value > best_value
            best = torch.where(per_image(higher, best), current, best)
            best_gradient = torch.where(per_image(higher, best), gradient, best_gradient)
            best_value = torch.where(higher, value, best_value)
            back = rule.check(value > last_value, best, best_value)
            if back is None:
                continue
            current = torch.where(per_image(back, best), best, current)
            gradient = torch.where(per_image(back, best), best_gradient, gradient)
            if allowed and self.found.settled(self.rows, margin):
                break
        if allowed:
            self.found.offer(self.rows, candidate, margin)
        return best

    def _evaluate(self, current: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return value_and_gradient(self.network, current, self.labels, self.loss_fn, self.draws)


class _Halving:
    """Step length for the inf- and 2-norm: 2 eps at first, halved where an image's ascent stalls.

    It stalls when too few steps since the last checkpoint raised the loss, or when neither the step nor the
    best loss has changed since then. Checkpoints come after 22 % of the steps and then ever more often.
    """

    def __init__(self, images: Tensor, eps: float, steps: int, norm: Norm) -> None:
        self.norm = norm
        self.size = torch.full((len(images),), 2.0 * eps, dtype=images.dtype, device=images.device)
        self.period = max(int(_FIRST_PERIOD * steps), 1)
        self.decrease = max(int(_PERIOD_DECREASE * steps), 1)
        self.least = max(int(_LEAST_PERIOD * steps), 1)
        self.since = 0
        self.rises = torch.zeros_like(self.size)
        self.halved = torch.ones_like(self.size, dtype=torch.bool)
        self.best_then = torch.full_like(self.size, torch.nan)

    def step(self, current: Tensor, gradient: Tensor) -> Tensor:
        return geometry.step(current, gradient, self.size, self.norm)

    def check(self, rose: Tensor, best: Tensor, best_value: Tensor) -> Tensor | None:
        """At a checkpoint, which images (bool, N) go back to their best point; None in between."""
        self.since += 1
        self.rises += rose
        if self.since < self.period:
            return None
        stalled = self.rises <= _RISING_SHARE * self.since
        stalled |= ~self.halved & (self.best_then >= best_value)
        self.size = torch.where(stalled, self.size / 2.0, self.size)
        self.halved, self.best_then = stalled, best_value
        self.since, self.rises = 0, torch.zeros_like(self.rises)
        self.period = max(self.period - self.decrease, self.least)
        return stalled


class _Sparsity:
    """Step length and number of moved coordinates for the 1-norm, led by how sparse the best point is."""

    def __init__(self, images: Tensor, start: Tensor, radius: float, steps: int) -> None:
        self.images, self.radius = images, radius
        self.size = torch.full((len(images),), radius, dtype=images.dtype, device=images.device)
        self.period = max(int(0.04 * steps), 1)
        self.since = 0
        self.nonzero = self._nonzero(start)
        self.counts = self.nonzero / _SHORTENING

    def step(self, current: Tensor, gradient: Tensor) -> Tensor:
        # Also where a pixel has no room left: what it cannot take is lost, which keeps the perturbation sparse.
        slope = gradient.abs().flatten(1)
        last = self.counts.ceil().long().clamp(min=1, max=slope.shape[1]) - 1
        least = slope.sort(dim=1, descending=True).values.gather(1, last[:, None])
        sign = gradient.sign() * (slope >= least).view_as(gradient)
        share = self.size / sign.flatten(1).abs().sum(dim=1).clamp_(min=1.0)
        return current + sign * per_image(share, sign)

    def check(self, rose: Tensor, best: Tensor, best_value: Tensor) -> Tensor | None:
        """At a checkpoint, which images (bool, N) go back to their best point; None in between."""
        self.since += 1
        if self.since < self.period:
            return None
        self.since = 0
        nonzero = self._nonzero(best)
        sparser = nonzero < _SPARSER * self.nonzero
        self.nonzero, self.counts = nonzero, nonzero / _SHORTENING
        shorter = (self.size / _SHORTENING).clamp_(min=self.radius / _LONGEST_OVER_SHORTEST)
        self.size = torch.where(sparser, torch.full_like(self.size, self.radius), shorter)
        return sparser

    def _nonzero(self, points: Tensor) -> Tensor:
        return (points != self.images).flatten(1).sum(dim=1).to(self.size.dtype)

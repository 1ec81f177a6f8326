"""Square Attack, Andriushchenko et al. 2020 (arXiv 1912.00049): random search, no gradients."""

import math

import torch
from torch import Tensor, nn

from anp_vs.attacks import geometry, losses
from anp_vs.attacks.found import Found
from anp_vs.attacks.frozen import frozen
from anp_vs.attacks.geometry import Norm, per_image
from anp_vs.attacks.noise import Source, select, uniform
from anp_vs.attacks.patterns import Window, tiles, whirl, windows
from anp_vs.attacks.prediction import averaged, checked, predict
from anp_vs.errors import InputError

_CHUNK = 100  # queries whose random numbers are drawn together; broken images leave the batch in between
# Queries after which the windows' area is halved.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_FULL_SCHEDULE = 5000  # with fewer queries than these, the halvings come proportionally earlier


def square(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "inf",
    queries: int = 5000,
    share: float = 0.8,
    draws: int = 1,
    generator: Source = None,
) -> Tensor:
    """Change random square windows and keep what raises the margin max_{i != y} z_i - z_y; no gradients.

    inf: a window takes the value +eps or -eps per channel. 2 and 1: the budget of one window goes to another.

    Args:
        network: float images in [0, 1] to logits N x K; attacked in evaluation mode, left as it was.
        images: float32, N x C x H x W in [0, 1].
        labels: int64, N.
        eps: radius in pixel units, >= 0; 0 returns the images.
        norm: of the ball, "inf", "2" or "1".
        queries: images shown to the network for each image that is not broken, >= 1.
        share: of an image's pixels in the first windows, in (0, 1]; halved as the search goes on.
        draws: passes averaged in each query, for a network that is random in evaluation mode.
        generator: of the search.

    Returns:
        Images shaped like `images`, in the threat model exactly: for each the one with the largest margin.

    Raises:
        InputError: for images, labels or a budget outside what is accepted, or logits that do not fit.
    """
    geometry.check_images(images, labels)
    geometry.check_budget(eps, norm)
    if queries < 1 or draws < 1 or not 0.0 < share <= 1.0:
        raise InputError(
            f"queries is {queries}, draws {draws}, share {share}; queries and draws must be at least 1, "
            "share in (0, 1]."
        )
    images = images.detach()
    with frozen(network), torch.no_grad():
        attacked = averaged(checked(network, labels), draws)
        logits = predict(attacked, images)
        if eps == 0:
            return images.clone()
        found = Found(images, losses.margin(logits, labels), logits)
        rows = found.pending()
        if len(rows) == 0:
            return found.images
        best = _first(images[rows], eps, norm, select(generator, rows))
        margin = losses.margin(predict(attacked, best), labels[rows])
        found.offer(rows, best, margin)
        pace = min(1.0, queries / _FULL_SCHEDULE)
        for begin in range(1, queries, _CHUNK):
            count = min(_CHUNK, queries - begin)
            clean, target = images[rows], labels[rows]
            random = uniform((len(rows), count, 5 + images.shape[1]), select(generator, rows), images)
            propose = _Proposals(clean, eps, norm)
            for query in range(count):
                area = share * 0.5 ** sum(begin + query > limit * pace for limit in _HALVINGS)
                candidate = propose(best, area, random[:, query])
                reached = losses.margin(attacked(candidate), target)
                better = reached > margin
                best = torch.where(per_image(better, best), candidate, best)
                margin = torch.where(better, reached, margin)
            found.offer(rows, best, margin)
            left = found.pending()
            if len(left) == 0:
                break
            if len(left) < len(rows):
                kept = torch.isin(rows, left)
                rows, best, margin = rows[kept], best[kept], margin[kept]
    return geometry.confine(images, found.images, eps, norm)


def _first(images: Tensor, eps: float, norm: Norm, generator: Source) -> Tensor:
    """Where the search starts: vertical stripes (inf), or a tiling with the windows' pattern (2, 1)."""
    count, channels, _, width = images.shape
    if norm == "inf":
        stripes = torch.where(uniform((count, channels, 1, width), generator, images) < 0.5, -1.0, 1.0)
        return geometry.project(images, images + eps * stripes.to(images.dtype), eps, norm)
    pattern = tiles(images, int(norm), generator)
    size = pattern.flatten(1).norm(p=float(norm), dim=1)
    return geometry.project(images, images + pattern * per_image(eps / size, pattern), eps, norm)


class _Proposals:
    """Candidates around the best images so far, one window an image."""

    def __init__(self, images: Tensor, eps: float, norm: Norm) -> None:
        self.images, self.eps, self.norm = images, eps, norm
        self.project = geometry.projector(images, eps, norm)
        if norm == "inf":
            self.lower, self.upper = geometry.box(images, eps)

    def __call__(self, best: Tensor, area: float, random: Tensor) -> Tensor:
        """A candidate for each image.

        Args:
            best: N x C x H x W.
            area: share of the pixels in the window.
            random: N x (5 + C), uniform in [0, 1).
        """
        channels, height, width = best.shape[1:]
        side = round(math.sqrt(area * height * width))
        signs = torch.where(random[:, 5:] < 0.5, -1.0, 1.0).to(best.dtype).view(-1, channels, 1, 1)
        if self.norm == "inf":
            side = min(max(side, 1), height, width)
            return self._recolour(best, windows(best, side, random[:, 0], random[:, 1]), signs)
        side = min(max(side, 3) | 1, height, width)
        to, away = windows(best, side, *random[:, :2].T), windows(best, side, *random[:, 2:4].T)
        return self._move_budget(best, to, away, signs, random[:, 4])

    def _recolour(self, best: Tensor, window: Window, signs: Tensor) -> Tensor:
        inside = window.mask()
        up = signs > 0
        candidate = torch.where(inside, torch.where(up, self.upper, self.lower), best)
        # Where the window had these values already, the query would be lost: the opposite values then.
        same = (candidate == best).flatten(1).all(dim=1).view(-1, 1, 1, 1)
        opposite = torch.where(inside, torch.where(up, self.lower, self.upper), best)
        return torch.where(same, opposite, candidate)

    def _move_budget(self, best: Tensor, to: Window, away: Window, signs: Tensor, turn: Tensor) -> Tensor:
        power = int(self.norm)
        delta = best - self.images
        union = to.mask() | away.mask()
        unused = (self.eps**power - _power(delta, power).sum(dim=1, keepdim=True)).clamp_(min=0.0)
        budget = _power(delta * union, power) + unused / delta.shape[1]
        old = to.read(delta)
        pattern = whirl(to.side, power, delta)
        pattern = torch.where(turn.view(-1, 1, 1, 1) < 0.5, pattern, pattern.T) * signs
        fresh = pattern + old / (_power(old, power) ** (1 / power)).clamp_(min=1e-12)
        fresh = fresh * (budget ** (1 / power) / (_power(fresh, power) ** (1 / power)).clamp_(min=1e-12))
        delta = to.write(delta * ~away.mask(), fresh)
        if self.norm == "2":
            delta = geometry.normalised(delta) * self.eps
        return self.project(self.images + delta)


def _power(delta: Tensor, power: int) -> Tensor:
    """Sum of |delta|^power in each channel, N x C x 1 x 1."""
    return (delta.abs() if power == 1 else delta.square()).sum(dim=(2, 3), keepdim=True)

"""Certified radii by randomized smoothing: answers that provably no small 2-norm perturbation changes.

Source: Cohen, Rosenfeld, Kolter 2019 (arXiv 1902.02918), procedure CERTIFY. What is certified is the
*smoothed* classifier, which answers with the class that the network gives most often under Gaussian noise;
the network should have seen such noise in training. Bounds for the network itself: `intervals`.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor, nn

from anp_vs.attacks.noise import per_image, seed_of, seeded
from anp_vs.errors import InputError
from anp_vs.evaluation.finished import Finished
from anp_vs.evaluation.progress import stage
from anp_vs.evaluation.subject import FEWEST_DRAWS, LabelledImages, Subject, batches, count_of, device_of, first_batch

ABSTAINED = -1
"""The class where no class was common enough."""
_TOGETHER = 10  # images whose certificates are kept at once


@dataclass(frozen=True)
class SmoothedCertificates:
    """The smoothed classifier's answers, each right with probability at least 1 - alpha.

    Attributes:
        predicted: int64, N: the class, or `ABSTAINED`.
        radius: float64, N: 2-norm radius in pixel units within which the answer does not change; 0 where it
            abstained.
        labels: int64, N.
        sigma: standard deviation of the noise, in pixel units.
        samples: noisy copies behind each certificate.
        alpha: probability with which one certificate may be wrong.
    """

    predicted: Tensor
    radius: Tensor
    labels: Tensor
    sigma: float
    samples: int
    alpha: float

    def certified_accuracy(self, radius: float) -> float:
        """Percentage of images answered correctly with a certified radius of at least `radius`."""
        right = (self.predicted == self.labels) & (self.radius >= radius)
        return 100 * float(right.double().mean())


@torch.no_grad()
def certify_smoothed(
    network: nn.Module,
    split: LabelledImages,
    *,
    sigma: float,
    samples: int = 1000,
    selection: int = 100,
    alpha: float = 0.001,
    limit: int | None = 100,
    batch_size: int = 500,
    seed: int = 0,
    finished: Finished | None = None,
    progress: bool = True,
) -> SmoothedCertificates:
    """Certify images one by one.

    Args:
        network: any module, float images N x C x H x W (noise included, so not in [0, 1]) to logits N x K. One
            that is random in evaluation mode votes with its noise, a fresh draw of it for each copy.
        split: a split of a data set, or a pair of float images in [0, 1] and int64 labels.
        sigma: standard deviation of the noise, > 0, in pixel units; the radius cannot exceed
            sigma * quantile(alpha ** (1 / samples)).
        samples: noisy copies that bound the probability of the chosen class.
        selection: noisy copies, other ones, that choose it.
        alpha: probability of error allowed for each certificate, in (0, 1).
        limit: only the first so many images.
        batch_size: noisy copies at a time.
        seed: of the noise.
        finished: where the outcomes are kept, to go on from after an interruption.
        progress: show what is going on.

    Raises:
        InputError: for values outside what is accepted, or a network that cannot be judged.
    """
    if not sigma > 0 or not 0 < alpha < 1:
        raise InputError(f"sigma is {sigma} and alpha {alpha}; sigma must be positive and alpha in (0, 1).")
    if samples < 1 or selection < 1 or batch_size < 1:
        raise InputError(
            f"samples is {samples}, selection {selection}, batch_size {batch_size}; each must be at least 1."
        )
    count = count_of(split, limit)
    device = device_of(network)
    first, first_labels = first_batch(split, count, batch_size)
    subject = Subject(network, first, first_labels, draws=FEWEST_DRAWS)
    if subject.random:
        batch_size = 1  # one draw of the weights serves a batch, and the bound counts independent votes
    finished = finished or Finished()
    predicted: list[int] = []
    radii: list[float] = []
    truth: list[int] = []

    def certificate(number: int, image: Tensor) -> tuple[int, float]:
        """The class, or `ABSTAINED`, and the radius."""
        (noise,) = per_image(seed, "smoothing", [number])
        with seeded(seed_of(seed, "network/smoothing", number), device):
            chosen = int(_votes(subject, image, sigma, selection, batch_size, noise).argmax())
            votes = _votes(subject, image, sigma, samples, batch_size, noise)
        least = clopper_pearson_lower(int(votes[chosen]), samples, alpha)
        return (chosen, sigma * NormalDist().inv_cdf(least)) if least > 0.5 else (ABSTAINED, 0.0)

    with stage("randomized smoothing", count, show=progress) as tell:
        for start, images, labels in batches(split, count, _TOGETHER):
            done = start + len(labels)
            part = f"smoothed by {sigma}, {selection} and {samples} samples, alpha {alpha}, images {start} to {done}"
            if finished.get(part) is None:
                shown = enumerate(images.to(device), start)
                finished.keep(part, [certificate(number, image[None]) for number, image in shown])
            for chosen, radius in finished.get(part):
                predicted.append(chosen)
                radii.append(radius)
            truth += labels.tolist()
            right = sum(p == t for p, t in zip(predicted, truth, strict=True))
            tell(done, f"{100 * right / done:.1f} % right and certain")
    return SmoothedCertificates(
        torch.tensor(predicted),
        torch.tensor(radii, dtype=torch.float64),
        torch.tensor(truth),
        sigma,
        samples,
        alpha,
    )


def clopper_pearson_lower(successes: int, trials: int, alpha: float) -> float:
    """The exact lower confidence bound (one-sided, level 1 - alpha) of a binomial probability.

    It is the p at which `successes` or more of `trials` have probability alpha, found by bisection.
    """
    if successes == 0:
        return 0.0
    counts = torch.arange(successes, trials + 1, dtype=torch.float64)
    total = torch.tensor(float(trials), dtype=torch.float64)
    ways = torch.lgamma(total + 1) - torch.lgamma(counts + 1) - torch.lgamma(total - counts + 1)
    low, high = 0.0, 1.0
    for _ in range(60):
        p = torch.tensor((low + high) / 2, dtype=torch.float64)
        tail = torch.logsumexp(ways + counts * p.log() + (total - counts) * torch.log1p(-p), dim=0).exp()
        low, high = (float(p), high) if float(tail) < alpha else (low, float(p))
    return low


def _votes(
    subject: Subject, image: Tensor, sigma: float, count: int, batch_size: int, noise: torch.Generator
) -> Tensor:
    """How often each class is the answer for `count` noisy copies of one image (1 x C x H x W)."""
    votes = torch.zeros(0, dtype=torch.int64)
    for begin in range(0, count, batch_size):
        copies = min(batch_size, count - begin)
        shift = torch.randn(copies, *image.shape[1:], generator=noise, dtype=image.dtype)
        logits = subject.network(image + sigma * shift.to(image.device))
        found = logits.argmax(dim=1).cpu().bincount(minlength=logits.shape[1])
        votes = found if len(votes) == 0 else votes + found
    return votes

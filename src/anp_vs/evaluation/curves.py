"""Accuracy under attack against the radius and against the number of steps, as data for a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from anp_vs.attacks.geometry import Norm
from anp_vs.attacks.protocols import Budget, PixelSpace
from anp_vs.evaluation.finished import Finished, checksum
from anp_vs.evaluation.subject import Subject
from anp_vs.evaluation.white_box import Attacker


@dataclass(frozen=True)
class Sample:
    """Some images held in memory, and who classifies them.

    Attributes:
        subject: the classifier.
        images: float32, N x C x H x W in [0, 1], on its device.
        labels: int64, N.
        batch_size: images at a time.
        seed: of all random starts.
        finished: where what `stands` is kept.
    """

    subject: Subject
    images: Tensor
    labels: Tensor
    batch_size: int
    seed: int
    finished: Finished = field(default_factory=Finished)

    def part(self, indices: Tensor) -> Sample:
        """Some of the images."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def correct(self, images: Tensor, purpose: str = "classify") -> Tensor:
        """Which of `images`, made from those of the sample, are classified as labelled: bool, N."""
        right = []
        for start in range(0, len(images), self.batch_size):
            x, y = images[start : start + self.batch_size], self.labels[start : start + self.batch_size]
            right.append(self.subject.classify(x, y, self.seed, purpose, start).argmax(dim=1) == y)
        return torch.cat(right) if right else torch.zeros(0, dtype=torch.bool, device=images.device)

    def attacked(self, budget: Budget, *, by: Subject | None = None, name: str = "curve", loss: str = "ce") -> Tensor:
        """PGD images made on `by`, or on the classifier itself; the same random starts for every budget."""
        attacker = Attacker(PixelSpace(), budget, self.seed)
        parts = [
            attacker(
                by or self.subject, self.images[start : start + self.batch_size],
                self.labels[start : start + self.batch_size], start, name=name, loss=loss,
            )
            for start in range(0, len(self.images), self.batch_size)
        ]  # fmt: skip
        return torch.cat(parts) if parts else self.images

    def standing(self, budget: Budget, *, by: Subject | None = None, name: str = "curve", loss: str = "ce") -> Tensor:
        """Which images of the sample are classified as labelled under the attack of `attacked`: bool, N."""
        part = self.part_name(f"{name}, {loss}, {budget}")
        stand: Tensor | None = self.finished.get(part)
        if stand is None:
            stand = self.finished.keep(part, self.correct(self.attacked(budget, by=by, name=name, loss=loss)).cpu())
        return stand.to(self.images.device)

    def part_name(self, what: str) -> str:
        """Name of what was found on these images, among finished parts."""
        return f"{what}, images {checksum((self.images, self.labels))}"

    def accuracy(self, images: Tensor) -> float:
        """Accuracy on `images` in percent; 100 for none."""
        return percent(self.correct(images))


def percent(standing: Tensor) -> float:
    """The percentage that is true; 100 of none."""
    return 100 * float(standing.double().mean()) if len(standing) else 100.0


@dataclass(frozen=True)
class Point:
    """One point of a curve: accuracy in percent under PGD of this radius and this many steps."""

    eps: float
    steps: int
    accuracy: float


def unbounded(norm: Norm, shape: Sequence[int]) -> float:
    """The radius at which the ball around any image holds every image C x H x W of [0, 1]."""
    values = 1
    for size in shape:
        values *= size
    return {"inf": 1.0, "2": math.sqrt(values), "1": float(values)}[norm]


def against_eps(sample: Sample, budget: Budget, radii: Sequence[float]) -> list[Point]:
    """Accuracy for each radius; the step keeps its share of the radius, and at least covers it in all."""
    points = []
    for eps in radii:
        share = max(budget.step / budget.eps, 2.5 / budget.steps) if budget.eps else 1.0
        step = share * eps if eps else budget.step
        standing = sample.standing(replace(budget, eps=eps, step=step))
        points.append(Point(eps, budget.steps, percent(standing)))
    return points


def against_steps(sample: Sample, budget: Budget, counts: Sequence[int]) -> list[Point]:
    """Accuracy for each number of steps; few steps are made long enough to reach the ball's surface.

    A curve that still falls at its end says that the attack was stopped too early.
    """
    points = []
    for count in counts:
        standing = sample.standing(reaching(replace(budget, steps=count)))
        points.append(Point(budget.eps, count, percent(standing)))
    return points


def reaching(budget: Budget) -> Budget:
    """The budget with steps long enough to reach the ball's surface in their number."""
    return replace(budget, step=max(budget.step, budget.eps / budget.steps))

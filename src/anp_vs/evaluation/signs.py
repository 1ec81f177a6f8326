"""The checks that tell a robust network from one that hides its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from anp_vs.attacks import geometry, square
from anp_vs.attacks.losses import ce, margin
from anp_vs.attacks.noise import per_image, seed_of, seeded
from anp_vs.attacks.prediction import input_gradient
from anp_vs.attacks.protocols import Budget
from anp_vs.evaluation.curves import Point, Sample, against_eps, against_steps, percent, reaching, unbounded
from anp_vs.evaluation.subject import Subject

RADII = (0.0, 0.5, 1.0, 2.0)
"""Radii of the curve, in units of eps; the unbounded one is added."""
TRIALS = 100
"""Random points of the ball tried for each image that the gradient attack could not break."""
QUERIES = 500
"""Queries of Square for each of these images."""
SHARES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""How far along the gradient the loss is looked at, in units of eps."""


@dataclass(frozen=True)
class Sign:
    """One thing that a sound network does not do.

    Attributes:
        name: of the check.
        suspicious: whether the network does it.
        reason: what was found, with figures, in one sentence.
        made: whether the check could be made at all; if not, the reason says why.
    """

    name: str
    suspicious: bool
    reason: str
    made: bool = True


def _search(name: str, by: str, broken: int, total: int, gradients: str) -> Sign:
    said = f"{by} broke {broken} of the {total} images that stood against {gradients}."
    return Sign(name, broken > max(1.0, 0.02 * total), said)


def square_after_gradients(after: Mapping[str, float], images: int) -> Sign | None:
    """What AutoAttack's Square broke of the images that its three attacks with gradients had left.

    Args:
        after: accuracy in [0, 1] after each of AutoAttack's attacks, in their order.
        images: how many were attacked.

    Returns:
        The sign; None where AutoAttack ran without Square, as it does on a random network.
    """
    if "square" not in after:
        return None
    stood, left = (round(images * share) for share in list(after.values())[-2:])
    return _search("AutoAttack's gradients leave Square nothing", "Square", stood - left, stood, "APGD and FAB")


class Checks:
    """Each check as a method; what several need is computed once.

    Args:
        sample: the images that are looked at, and the classifier.
        budget: of the attack whose figure is in question.
        source: attacked for black-box images; None leaves that check out.

    Attributes:
        eps_curve: accuracy for each radius; the unbounded one is last, once that check was made.
        steps_curve: accuracy for each number of steps.
        rise: (distance in units of eps, rise of the margin along the gradient, along a random direction).
        zero_percent: percentage of the gradients' elements that are exactly zero.
    """

    def __init__(self, sample: Sample, budget: Budget, source: Subject | None) -> None:
        self.sample, self.budget, self.source = sample, budget, source
        self.tolerance = 1.0 + 100 / len(sample.labels)  # points: one, or one image
        self.far = unbounded(budget.norm, sample.images.shape[1:])
        ends = {1, 4, 10, math.ceil(2.5 * budget.steps)} - {budget.steps}
        self.steps_curve = against_steps(sample, budget, sorted(ends))
        self.eps_curve = against_eps(sample, budget, [r * budget.eps for r in RADII if r * budget.eps < self.far])
        self.by_ce = sample.standing(reaching(budget))
        own = Point(budget.eps, budget.steps, percent(self.by_ce))
        self.steps_curve = sorted([*self.steps_curve, own], key=lambda point: point.steps)
        self.by_margin = sample.standing(replace(budget, steps=max(100, budget.steps)), loss="margin")
        right = sample.correct(sample.images) & self.by_ce & self.by_margin
        self.white = 100 * float(right.double().mean())
        self.left = right.nonzero().squeeze(1)
        self.rise: list[tuple[float, float, float]] = []
        self.zero_percent, self.flat_percent, self.rising_percent = self._look_at_gradients()

    def every(self) -> list[Callable[[], Sign]]:
        """The checks, in the order in which they are made."""
        return [
            self.black_box, self.unbounded, self.radii, self.lengths, self.single_step, self.losses,
            self.random_points, self.queries, self.rising, self.zero,
        ]  # fmt: skip

    def black_box(self) -> Sign:
        """Transferred images must not do better than the gradient attack."""
        name = "white box is not weaker than black box"
        if self.source is None:
            return Sign(name, False, "not checked: no source network to make black-box images on.", made=False)
        black = percent(self.sample.standing(self.budget, by=self.source, name="black-box"))
        said = f"white-box accuracy {self.white:.2f} %, black-box {black:.2f} %."
        return Sign(name, self.white > black + self.tolerance, said)

    def unbounded(self) -> Sign:
        """With every image allowed, the attack must reach 0 %."""
        budget = replace(self.budget, eps=self.far, step=self.far / 20, steps=max(50, self.budget.steps))
        left = self.sample.part(self.sample.standing(budget).nonzero().squeeze(1))
        right = left.standing(budget, loss="margin", name="unbounded")
        accuracy = 100 * float(right.sum()) / len(self.sample.labels)
        self.eps_curve.append(Point(self.far, budget.steps, accuracy))
        said = f"accuracy {accuracy:.2f} % at eps {self.far:g}, where every image is allowed; it should be 0."
        return Sign("unbounded attack reaches 0 %", accuracy > self.tolerance, said)

    def radii(self) -> Sign:
        """A larger ball must not help the network."""
        return self._falls("accuracy falls with eps", self.eps_curve, "eps", lambda point: f"{point.eps:.3g}")

    def lengths(self) -> Sign:
        """A longer attack must not help the network."""
        return self._falls("accuracy falls with steps", self.steps_curve, "steps", lambda point: str(point.steps))

    def single_step(self) -> Sign:
        """One step must not do better than many."""
        single = self.steps_curve[0].accuracy
        many = next(point.accuracy for point in self.steps_curve if point.steps == self.budget.steps)
        said = f"{single:.2f} % after one step, {many:.2f} % after {self.budget.steps}."
        return Sign("one step is not stronger than many", single < many - self.tolerance, said)

    def losses(self) -> Sign:
        """Saturated logits hide from cross-entropy what the margin still sees."""
        plain, by_margin = percent(self.by_ce), percent(self.by_margin)
        said = f"{plain:.2f} % under PGD on cross-entropy, {by_margin:.2f} % under PGD on the margin."
        return Sign("the loss does not hide the gradient", by_margin < plain - 10, said)

    def random_points(self) -> Sign:
        """Where the gradient attack fails, random points must find nothing."""
        sample = self.sample.part(self.left)
        standing = torch.ones(len(self.left), dtype=torch.bool, device=self.left.device)
        for trial in range(TRIALS if len(self.left) else 0):
            generator = per_image(sample.seed, f"random/{trial}", self.left.tolist())
            points = geometry.random_start(sample.images, self.budget.eps, self.budget.norm, generator, by_volume=True)
            if trial % 2 and self.budget.norm == "inf":  # corners of the ball move further
                corners = sample.images + self.budget.eps * (points - sample.images).sign()
                points = geometry.confine(sample.images, corners, self.budget.eps, "inf")
            standing &= sample.correct(points, f"random/{trial}")
        return self._search("random points of the ball find nothing", standing, f"{TRIALS} random points")

    def queries(self) -> Sign:
        """Where the gradient attack fails, a search without gradients must find next to nothing."""
        by, name = f"Square with {QUERIES} queries", "search without gradients finds nothing"
        sample = self.sample.part(self.left)
        part = sample.part_name(by)
        if (standing := sample.finished.get(part)) is not None:
            return self._search(name, standing, by)
        parts = []
        for start in range(0, len(self.left), sample.batch_size):
            rows = slice(start, start + sample.batch_size)
            x, y = sample.images[rows], sample.labels[rows]
            with seeded(seed_of(sample.seed, "network/square", start), x.device):
                found = square(
                    sample.subject.attacked, x, y, eps=self.budget.eps, norm=self.budget.norm,
                    queries=QUERIES, draws=sample.subject.draws,
                    generator=per_image(sample.seed, "square", self.left[rows].tolist()),
                )  # fmt: skip
            parts.append(found)
        standing = sample.correct(torch.cat(parts)) if parts else torch.zeros(0, dtype=torch.bool)
        return self._search(name, sample.finished.keep(part, standing), by)

    def rising(self) -> Sign:
        """Along the gradient the margin of a wrong class must rise."""
        said = (
            f"a step of {SHARES[0]:g} eps along the gradient raises the margin of a wrong class on "
            f"{self.rising_percent:.1f} % of the images."
        )
        return Sign("loss rises along the gradient", self.rising_percent < 90, said)

    def zero(self) -> Sign:
        """The input gradient must not vanish."""
        said = (
            f"the input gradient is exactly zero everywhere on {self.flat_percent:.1f} % of the images "
            f"({self.zero_percent:.1f} % of its elements)."
        )
        return Sign("input gradients are not zero", self.flat_percent > 5, said)

    def _falls(self, name: str, curve: list[Point], what: str, label: Callable[[Point], str]) -> Sign:
        rises = [
            (later.accuracy - earlier.accuracy, earlier, later)
            for place, earlier in enumerate(curve)
            for later in curve[place + 1 :]
        ]
        worst, earlier, later = max(rises, key=lambda rise: rise[0])
        if worst > self.tolerance:
            said = f"it rises from {earlier.accuracy:.2f} % at {what} {label(earlier)} "
            return Sign(name, True, said + f"to {later.accuracy:.2f} % at {label(later)}.")
        first, last = curve[0], curve[-1]
        said = f"{first.accuracy:.2f} % at {what} {label(first)}, {last.accuracy:.2f} % at {label(last)}."
        return Sign(name, False, said)

    def _search(self, name: str, standing: Tensor, by: str) -> Sign:
        return _search(name, by, int((~standing).sum()), len(self.left), "PGD")

    def _look_at_gradients(self) -> tuple[float, float, float]:
        """Percentages of zero elements, of images without any gradient, of images where the margin rises."""
        sample = self.sample
        zeros, flat, rising, rise = [], [], [], []
        for start in range(0, len(sample.labels), sample.batch_size):
            rows = slice(start, start + sample.batch_size)
            x, y = sample.images[rows], sample.labels[rows]
            with seeded(seed_of(sample.seed, "network/gradient", start), x.device):
                gradient = input_gradient(sample.subject.attacked, x, y, ce, sample.subject.draws)
            numbers = range(start, start + len(x))
            noise = geometry.random_start(torch.full_like(x, 0.5), 0.5, "inf", per_image(sample.seed, "way", numbers))
            none = (gradient == 0).flatten(1).double()
            zeros.append(none.mean(1))
            flat.append(none.all(1).double())
            base = self._margin(x, y, start)
            along = torch.stack([self._moved(x, y, gradient, share, start) - base for share in SHARES])
            aside = torch.stack([self._moved(x, y, noise - 0.5, share, start) - base for share in SHARES])
            rising.append((along[0] > 0).double())
            rise.append(torch.stack([along, aside]))
        means = torch.cat(rise, dim=2).mean(2)
        self.rise = [(share, *means[:, i].tolist()) for i, share in enumerate(SHARES)]
        zero, flat_images, rises = (100 * float(torch.cat(parts).mean()) for parts in (zeros, flat, rising))
        return zero, flat_images, rises

    def _moved(self, x: Tensor, y: Tensor, direction: Tensor, share: float, start: int) -> Tensor:
        moved = geometry.step(x, direction, share * self.budget.eps, self.budget.norm).clamp(0, 1)
        return self._margin(moved, y, start)

    def _margin(self, x: Tensor, y: Tensor, start: int) -> Tensor:
        # The same noise at every point, or a random network's would hide the rise.
        return margin(self.sample.subject.classify(x, y, self.sample.seed, "margin", start), y).double()

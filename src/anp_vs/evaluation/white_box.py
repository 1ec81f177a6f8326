"""PGD as an evaluation uses it: reproducible image by image, and the strongest combination of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from anp_vs.attacks.found import Found
from anp_vs.attacks.losses import margin
from anp_vs.attacks.noise import per_image, seed_of, seeded
from anp_vs.attacks.protocols import Budget, EvaluationProtocol
from anp_vs.evaluation.subject import Subject

LONG_RUN = 100
"""Least number of steps of the PGD on the margin."""


@dataclass(frozen=True)
class Attacker:
    """PGD under a protocol and a budget; each image's random start depends on its number and the seed alone.

    Attributes:
        protocol: what is attacked and what is allowed.
        budget: eps, step, steps, norm.
        seed: of all random starts.
    """

    protocol: EvaluationProtocol
    budget: Budget
    seed: int

    def __call__(
        self,
        subject: Subject,
        images: Tensor,
        labels: Tensor,
        start: int,
        *,
        name: str,
        loss: str = "ce",
        budget: Budget | None = None,
        numbers: Iterable[int] | None = None,
    ) -> Tensor:
        """Adversarial images for one batch.

        Args:
            subject: attacked.
            images: as it is shown them, N x C x H x W.
            labels: int64, N.
            start: number of the batch's first image.
            name: of the attack; another name is another random start.
            loss: "ce", "dlr" or "margin".
            budget: another than the attacker's own.
            numbers: of the images, where they do not follow each other.
        """
        numbers = range(start, start + len(images)) if numbers is None else numbers
        with seeded(seed_of(self.seed, f"network/{name}", start), images.device):
            return self.protocol.attack(
                subject.attacked, images, labels, budget or self.budget,
                loss=loss, draws=subject.draws, generator=per_image(self.seed, name, numbers),
            )  # fmt: skip


def strongest(
    attacker: Attacker,
    subject: Subject,
    images: Tensor,
    labels: Tensor,
    start: int,
    first: Tensor,
    restarts: int,
) -> Tensor:
    """For each image the worst of many PGD runs: cross-entropy from several starts, and a longer run on the margin.

    An image that is misclassified already is not attacked further.

    Args:
        attacker: its budget is used for cross-entropy; the run on the margin has at least 100 steps, no
            longer than eps / 4.
        subject: attacked.
        images: clean, as the network is shown them.
        labels: int64, N.
        start: number of the batch's first image.
        first: the images of a first run of `attacker`.
        restarts: random starts on cross-entropy, of which `first` is one.

    Returns:
        For each image the one with the largest margin of a wrong class, the clean one included.
    """

    def margins(attacked: Tensor, of: Tensor, purpose: str) -> Tensor:
        return margin(subject.classify(attacked, of, attacker.seed, purpose, start), of)

    clean = subject.classify(images, labels, attacker.seed, "choose", start)
    found = Found(images, margin(clean, labels), clean)
    found.offer(torch.arange(len(labels), device=labels.device), first, margins(first, labels, "choose/first"))
    eps = attacker.budget.eps
    longer = replace(
        attacker.budget,
        steps=max(LONG_RUN, attacker.budget.steps),
        step=min(attacker.budget.step, eps / 4) if eps else attacker.budget.step,
    )
    runs = [("ce", attacker.budget, repeat) for repeat in range(1, restarts)]
    runs += [("margin", longer, 0)]
    for loss, budget, repeat in runs if eps else []:
        left = found.pending()
        if not len(left):
            break
        attacked = attacker(
            subject, images[left], labels[left], start,
            name=f"{loss}/{repeat}", loss=loss, budget=budget, numbers=(left + start).tolist(),
        )  # fmt: skip
        found.offer(left, attacked, margins(attacked, labels[left], f"choose/{loss}/{repeat}"))
    return found.images

"""Signs of masked gradients: does the attack fail because the network is robust, or because it sees nothing?

Sources: Athalye, Carlini, Wagner 2018 (arXiv 1802.00420, section 3.1) and Carlini et al. 2019
(arXiv 1902.06705, the checklist).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from anp_vs.attacks import geometry
from anp_vs.attacks.geometry import Norm
from anp_vs.attacks.protocols import Budget
from anp_vs.device import full_float32
from anp_vs.errors import InputError
from anp_vs.evaluation.curves import Point, Sample
from anp_vs.evaluation.finished import Finished
from anp_vs.evaluation.progress import stage
from anp_vs.evaluation.signs import Checks, Sign
from anp_vs.evaluation.subject import LabelledImages, Subject, batches, count_of, device_of

DIAGNOSED = 160
"""Images that are looked at unless asked otherwise."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found on some images.

    Attributes:
        signs: every check, in order.
        against_eps: accuracy for each radius, up to the unbounded one.
        against_steps: accuracy for each number of steps.
        rise: for each distance in units of eps how much the margin of the most likely wrong class rose along
            the gradient and along a random direction, means over the images.
        zero_gradients: percentage of the input gradient's elements that are exactly zero.
        images: how many were looked at.
        eps: radius of the attack.
        norm: of the ball.
    """

    signs: tuple[Sign, ...]
    against_eps: tuple[Point, ...]
    against_steps: tuple[Point, ...]
    rise: tuple[tuple[float, float, float], ...]
    zero_gradients: float
    images: int
    eps: float
    norm: Norm

    @property
    def suspicious(self) -> bool:
        """Whether any sign was seen, so that the robust accuracy is not to be trusted."""
        return any(sign.suspicious for sign in self.signs)

    def verdict(self) -> str:
        """The verdict and its reasons, as text of several lines."""
        seen = [sign for sign in self.signs if sign.suspicious]
        fine = [sign for sign in self.signs if sign.made and not sign.suspicious]
        left_out = [sign for sign in self.signs if not sign.made]
        made = len(seen) + len(fine)
        if seen:
            head = f"Signs of masked gradients ({len(seen)} of {made} checks): do not trust the robust accuracy."
        else:
            head = f"No sign of masked gradients in {made} checks on {self.images} images."
        marked = [("!", seen), ("-", fine), ("?", left_out)]
        return "\n".join([head, *(f"  {mark} {s.name}: {s.reason}" for mark, signs in marked for s in signs)])

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, ready for JSON."""
        return asdict(self) | {"suspicious": self.suspicious, "verdict": self.verdict()}


@full_float32()
def diagnose(
    network: nn.Module,
    split: LabelledImages,
    *,
    eps: float,
    step: float,
    steps: int = 40,
    norm: Norm = "inf",
    source: nn.Module | None = None,
    limit: int | None = DIAGNOSED,
    batch_size: int = 200,
    seed: int = 0,
    draws: int = 1,
    finished: Finished | None = None,
    progress: bool = True,
) -> Diagnosis:
    """Look for signs that attacks fail on a network because its gradients are of no use.

    Args:
        network: any module, float images N x C x H x W in [0, 1] to logits N x K; not changed.
        split: a split of a data set, or a pair of float images in [0, 1] and int64 labels.
        eps: radius of the attack whose figure is in question, > 0, in pixel units.
        step: length of its steps.
        steps: their number.
        norm: of the ball.
        source: a network for black-box images; without one only Square stands for the black box.
        limit: how many images are looked at; about 650 gradients are computed for each.
        batch_size: images at a time.
        seed: of all randomness.
        draws: passes averaged for a network that is random in evaluation mode.
        finished: where the outcome of each attack is kept, to go on from after an interruption.
        progress: show what is going on.

    Returns:
        The signs with their figures, and the data of the curves.

    Raises:
        InputError: for values outside what is accepted, or a network that cannot be judged.
    """
    geometry.check_budget(eps, norm, step, steps)
    if eps == 0:
        raise InputError("eps is 0; signs of masked gradients can only be looked for with an attack, eps > 0.")
    count = count_of(split, limit)
    pairs = [(x, y) for _, x, y in batches(split, count, batch_size)]
    device = device_of(network)
    images, labels = torch.cat([x for x, _ in pairs]).to(device), torch.cat([y for _, y in pairs]).to(device)
    head = images[:batch_size], labels[:batch_size]
    subject = Subject(network, *head, draws=draws)
    helper = None if source is None else Subject(source, *head, draws=draws, role="source network")
    sample = Sample(subject, images, labels, batch_size, seed, finished or Finished())
    checks = Checks(sample, Budget(eps, step, steps, norm), helper)
    signs = []
    every = checks.every()
    with stage("masked gradients", len(every), show=progress) as tell:
        for number, check in enumerate(every, 1):
            signs.append(check())
            tell(number, signs[-1].name)
    return Diagnosis(
        signs=tuple(signs),
        against_eps=tuple(checks.eps_curve),
        against_steps=tuple(checks.steps_curve),
        rise=tuple(checks.rise),
        zero_gradients=checks.zero_percent,
        images=count,
        eps=eps,
        norm=norm,
    )

"""What is evaluated: the images, and a classifier held in the state in which it is judged."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from anp_vs.attacks import geometry
from anp_vs.attacks.noise import seed_of, seeded
from anp_vs.attacks.prediction import check_logits, predict
from anp_vs.data import Split, to_float
from anp_vs.errors import InputError
from anp_vs.networks.copying import copied
from anp_vs.pruning.twin import Twin

logger = logging.getLogger(__name__)
LabelledImages = Split | tuple[Tensor, Tensor]
"""A split of a data set, or float images N x C x H x W in [0, 1] with int64 labels N."""
REPEATS = 5
"""Times a figure of a random network is taken, for its spread."""
FEWEST_DRAWS = 2
_SAME = 1e-5  # of the largest logit: two passes that differ by more are random, not rounded differently
_FOLDED = 1e-4  # likewise for the folded copy


def batches(images: LabelledImages, count: int, size: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The first `count` images in batches: number of the first one, float images in [0, 1], labels.

    Raises:
        InputError: images or labels outside what is accepted.
    """
    order = [torch.arange(begin, min(begin + size, count)) for begin in range(0, count, size)]
    start = 0
    for shown, labels in _pairs(images, order):
        geometry.check_images(shown, labels)
        yield start, shown, labels
        start += len(labels)


def first_batch(images: LabelledImages, count: int, size: int) -> tuple[Tensor, Tensor]:
    """The first of the `batches`, which a network is looked at with: float images in [0, 1], and labels."""
    _, shown, labels = next(batches(images, min(count, size), size))
    return shown, labels


def _pairs(images: LabelledImages, order: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(images, Split):
        for batch, labels in images.batches(order):
            yield to_float(batch), labels
    else:
        values, labels = images
        geometry.check_images(values, labels)
        for indices in order:
            yield values[indices].float(), labels[indices]


def count_of(images: LabelledImages, limit: int | None) -> int:
    """How many images are evaluated.

    Raises:
        InputError: none would be, or `limit` is not a positive number.
    """
    total = len(images) if isinstance(images, Split) else len(images[1])
    if total == 0:
        raise InputError("the split is empty; an evaluation needs at least one image.")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; give the number of images to evaluate, 1 to {total}, or None for all.")
    return total if limit is None else min(limit, total)


def device_of(network: nn.Module) -> torch.device:
    """Where a network's first tensor lies; the CPU for a network without any."""
    tensors = [*network.parameters(), *network.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


class Subject:
    """A classifier as it is judged: a float32 copy in evaluation mode, and the copy that is attacked.

    For an attack's many passes pruned channels are taken out and normalisation is folded into the weights
    (`anp_vs.pruning.twin`), where that gives the same logits; predictions are always the network's own.

    Args:
        network: images to logits N x K; not changed.
        images: a first batch, float32, N x C x H x W, as the network is shown it.
        labels: int64, N.
        draws: forward passes averaged in each prediction and gradient of a network that is random.
        classes: the number of logits it must have; None accepts any that has room for the labels.
        role: names the network in messages.

    Attributes:
        network: the copy.
        attacked: the copy for attacks, the same function.
        random: whether two passes in evaluation mode differ.
        draws: 1 unless it is random.

    Raises:
        InputError: what it returns are not usable logits (probabilities, NaN, a wrong number of classes), or
            it is random and `draws` is 1.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        draws: int = 1,
        classes: int | None = None,
        role: str = "network",
    ) -> None:
        if draws < 1:
            raise InputError(f"draws is {draws}; it must be at least 1.")
        self.network = copied(network).float().eval().requires_grad_(False)
        self.device = device_of(network)
        images, labels = images.to(self.device), labels.to(self.device)
        with seeded(0, self.device):
            first, second = self._pass(images), self._pass(images)
        check_logits(first, labels)
        if classes is not None and first.shape[1] != classes:
            raise InputError(
                f"the {role} has {first.shape[1]} outputs and the data {classes} classes; they must be the "
                f"same. Evaluate it on the data it was made for."
            )
        scale = float(first.abs().max())
        self.random = not torch.allclose(first, second, rtol=0.0, atol=_SAME * scale)
        if self.random and draws < FEWEST_DRAWS:
            raise InputError(
                f"two passes of the {role} over the same images differ, so it is random in evaluation mode, "
                f"and a figure from one draw means nothing. Give draws (20 is usual): predictions and the "
                f"attack's gradients are then averaged over as many passes."
            )
        self.draws = draws if self.random else 1
        self.attacked = self.network if self.random else self._folded(images, first)

    def classify(self, images: Tensor, labels: Tensor, seed: int, purpose: str, start: int) -> Tensor:
        """Logits (N x K; of averaged probabilities for a random network), checked.

        Args:
            images: as the network is shown them.
            labels: int64, N.
            seed: of a random network's noise,
            purpose: and what else it is a function of: what is classified,
            start: and the number of the batch's first image.
        """
        if not self.random:
            logits = predict(self.network, images)
        else:
            with seeded(seed_of(seed, purpose, start), self.device):
                logits = predict(self.network, images, self.draws)
        check_logits(logits, labels)
        return logits

    @torch.no_grad()
    def _pass(self, images: Tensor) -> Tensor:
        try:
            logits: Tensor = self.network(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a network may do anything with images it is not made for
            raise InputError(
                f"{type(self.network).__name__} does not accept images of shape {tuple(images.shape)}: "
                f"{error}. Evaluate it on images of the size it was made for."
            ) from error
        return logits

    def _folded(self, images: Tensor, logits: Tensor) -> nn.Module:
        try:
            folded = Twin(copied(self.network), images[:2].clone()).build()
            with torch.no_grad():
                same = torch.allclose(
                    folded(images.clone()), logits, rtol=0.0, atol=_FOLDED * float(logits.abs().max())
                )
        except torch.OutOfMemoryError:
            raise
        except (InputError, RuntimeError, TypeError, AttributeError) as error:
            logger.info("%s is attacked as it is, since it cannot be traced: %s", type(self.network).__name__, error)
            return self.network
        if not same:
            logger.warning(
                "%s is attacked as it is: folded into a faster form it gives other logits.", type(self.network).__name__
            )
        return folded if same else self.network

"""Which images a step of training sees: a function of the seed and the step, so that a stopped run goes on alike."""

from __future__ import annotations

import torch
from torch import Tensor

from anp_vs.data import Split
from anp_vs.data.augment import CROP_FLIP, Augmentation
from anp_vs.recipes import Recipe
from anp_vs.training.seeding import generator


class Batches:
    """The batches of a run, by step.

    Args:
        recipe: seed, size of a batch, augmentation.
        split: the training images, on the device of training.
    """

    def __init__(self, recipe: Recipe, split: Split) -> None:
        self._recipe, self._split = recipe, split
        self._augment = CROP_FLIP if recipe.augment else Augmentation(pad=recipe.shift)
        self._order: tuple[int, Tensor] | None = None

    def at(self, step: int, *, last: bool = False) -> tuple[Tensor, Tensor]:
        """Images (float, augmented) and labels of a step; unless it is the last, the next one's pictures are prepared.

        Args:
            step: counted from 0 over the whole run.
            last: whether no step follows.
        """
        chosen = self._chosen(step)
        draws = generator(torch.device("cpu"), self._recipe.seed, "augment", step)
        images, labels = self._augment(self._split.batch(chosen), draws), self._split.labels[chosen]
        if not last:
            self._split.prepare(self._chosen(step + 1))  # decoded while this step computes
        return images, labels

    def _chosen(self, step: int) -> Tensor:
        """Numbers of the images of a step's batch."""
        size = self._recipe.batch_size
        epoch, index = divmod(step, len(self._split) // size)
        if self._order is None or self._order[0] != epoch:
            draws = generator(torch.device("cpu"), self._recipe.seed, "order", epoch)
            self._order = (epoch, torch.randperm(len(self._split), generator=draws).to(self._split.labels.device))
        return self._order[1][index * size : (index + 1) * size]

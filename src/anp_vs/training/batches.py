"""Which images a step of training sees: a function of the seed and the step, so that a stopped run goes on alike."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from anp_vs.data import Split
from anp_vs.data.augment import CROP_FLIP, Augmentation
from anp_vs.errors import InputError
from anp_vs.recipes import Recipe
from anp_vs.training.seeding import generator


class Batches:
    """The batches of a run, by step.

    Args:
        recipe: seed, size of a batch, augmentation, and the share of generated images.
        split: the training images, on the device of training.
        generated: images that fill the recipe's `generated_share` of every batch, drawn from as from the others:
            each once, in a new order, before any comes again.

    Raises:
        InputError: there are fewer generated images than a batch takes.
    """

    def __init__(self, recipe: Recipe, split: Split, generated: Split | None = None) -> None:
        self._recipe, self._split, self._generated = recipe, split, generated
        self._augment = CROP_FLIP if recipe.augment else Augmentation(pad=recipe.shift)
        self._added = 0 if generated is None else round(recipe.generated_share * recipe.batch_size)
        self._orders: dict[str, tuple[int, Tensor]] = {}
        if generated is not None and len(generated) < self._added:
            raise InputError(
                f"There are {len(generated)} generated images, and a batch takes {self._added}; lower generated_share "
                f"(now {recipe.generated_share}) or batch_size."
            )

    @property
    def generated_mark(self) -> int | None:
        """A checksum by which a resumed run knows the generated images again: of all labels, and of a thousand images."""
        if self._generated is None:
            return None
        some = torch.arange(1000) * (len(self._generated) - 1) // 999
        parts = self._generated.labels, self._generated.batch(some)
        return zlib.crc32(b"".join(part.numpy().tobytes() for part in parts))

    def at(self, step: int, *, last: bool = False) -> tuple[Tensor, Tensor]:
        """Images (float, augmented) and labels of a step; unless it is the last, the next one's pictures are prepared.

        Args:
            step: counted from 0 over the whole run.
            last: whether no step follows.
        """
        chosen = self._chosen(step)
        images, labels = self._split.batch(chosen), self._split.labels[chosen]
        if self._generated is not None:
            added = self._drawn(self._generated, "generated", step, self._added)
            images = torch.cat([images, self._generated.batch(added).to(images.device)])
            labels = torch.cat([labels, self._generated.labels[added].to(labels.device)])
        draws = generator(torch.device("cpu"), self._recipe.seed, "augment", step)
        augmented = self._augment(images, draws)
        if not last:
            self._split.prepare(self._chosen(step + 1))  # decoded while this step computes
        return augmented, labels

    def _chosen(self, step: int) -> Tensor:
        """Numbers of the training images of a step's batch."""
        return self._drawn(self._split, "order", step, self._recipe.batch_size - self._added)

    def _drawn(self, split: Split, purpose: str, step: int, size: int) -> Tensor:
        """Numbers of `size` images for a step: pass after pass over a split, each in an order of its own."""
        turn, index = divmod(step, len(split) // size)
        held = self._orders.get(purpose)
        if held is None or held[0] != turn:
            draws = generator(torch.device("cpu"), self._recipe.seed, purpose, turn)
            held = turn, torch.randperm(len(split), generator=draws).to(split.labels.device)
            self._orders[purpose] = held
        return held[1][index * size : (index + 1) * size]

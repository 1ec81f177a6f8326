"""Data sets as the rest of the package sees them: three splits of labelled uint8 images."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anp_vs.errors import InputError


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images in memory, on any device.

    Attributes:
        images: uint8, N x C x H x W, grey values 0..255; a network's input is `images / 255`.
        labels: int64, N, on the same device; class numbers from 0.

    Raises:
        InputError: If shapes or types differ from these.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise InputError(
                f"images are {self.images.dtype} of shape {tuple(self.images.shape)}; a split takes uint8 of "
                "shape N x C x H x W with values 0..255. Multiply images in [0, 1] by 255, round, and "
                "convert to uint8."
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise InputError(
                f"labels are {self.labels.dtype} of shape {tuple(self.labels.shape)}; a split of "
                f"{self.images.shape[0]} images takes int64 of shape ({self.images.shape[0]},). "
                "Give one class number an image."
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def batch(self, indices: Tensor) -> Tensor:
        """Images by number.

        Args:
            indices: int64, B, each in 0..N-1, in any order, repeats allowed.

        Returns:
            uint8, B x C x H x W, on the split's device.
        """
        return self.images[indices.to(self.images.device)]

    def prepare(self, indices: Tensor) -> None:
        """Announce the `batch` to come: a split read from disk decodes it meanwhile. Nothing to do in memory."""

    def close(self) -> None:
        """Let go of what was announced and never asked for."""

    def batches(self, order: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, labels) of each batch of `order` in turn; a split read from disk decodes ahead here."""
        for indices in order:
            yield self.batch(indices), self.labels[indices.to(self.labels.device)]

    def to(self, device: torch.device | str) -> "Split":
        """The same split on another device."""
        return Split(self.images.to(device), self.labels.to(device))

    def subset(self, indices: Tensor) -> "Split":
        """The images with these numbers (int64, M, in 0..N-1), in the order given."""
        return Split(self.batch(indices), self.labels[indices.to(self.labels.device)])

    def head(self, count: int) -> "Split":
        """The first `count` images, or all when there are fewer."""
        return self.subset(torch.arange(min(count, len(self))))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set: what is trained on, what choices are made by, and what is only ever reported.

    Attributes:
        name: The name it was loaded by.
        train: Training images, without those held out.
        validation: Images held out of the official training set.
        test: The official test set, whole.
        classes: Class names; label k is `classes[k]`.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]

    def to(self, device: torch.device | str) -> "Dataset":
        """The same data set with all three splits on another device."""
        train, validation, test = (split.to(device) for split in (self.train, self.validation, self.test))
        return Dataset(self.name, train, validation, test, self.classes)


def hold_out(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Divide a labelled set in two, each class in proportion.

    Class k gives `count * N_k / N` images, rounded by largest remainder (so within one of that share), chosen
    at random. NumPy's legacy RandomState draws them, because its stream is frozen: the same seed holds out
    the same images on every machine and with every later version.

    Args:
        labels: int64, N.
        count: How many to hold out, 0..N minus the number of classes.
        seed: 0..2**32 - 1.

    Returns:
        Numbers of the images kept and of those held out, both int64 and ascending.

    Raises:
        InputError: If count or seed is outside its range, or so large that a class would be left empty.
    """
    numbers = labels.cpu().numpy()
    classes, sizes = np.unique(numbers, return_counts=True)
    largest = len(numbers) - len(classes)
    if not is_whole(count) or not 0 <= count <= largest:
        raise InputError(
            f"a validation split of {count!r} images cannot be held out of {len(numbers)} training images in "
            f"{len(classes)} classes; give a whole number from 0 to {largest}."
        )
    if not is_whole(seed) or not 0 <= seed < 2**32:
        raise InputError(f"seed {seed!r} is not a whole number from 0 to 2**32 - 1; choose one in that range.")
    if count == 0:
        return torch.arange(len(numbers)), torch.empty(0, dtype=torch.int64)
    quotas, remainders = np.divmod(count * sizes, len(numbers))
    quotas[np.argsort(-remainders, kind="stable")[: count - quotas.sum()]] += 1
    if (quotas >= sizes).any():
        small = int(classes[np.argmax(quotas >= sizes)])
        raise InputError(
            f"holding out {count} of {len(numbers)} images would leave class {small} without a training "
            "image; hold out fewer."
        )
    draw = np.random.RandomState(seed)
    held = np.zeros(len(numbers), dtype=bool)
    for label, quota in zip(classes, quotas, strict=True):
        held[draw.permutation(np.flatnonzero(numbers == label))[:quota]] = True
    return torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))


def is_whole(value: object) -> bool:
    """Whether a value that a user gave is an int, and not True or False."""
    return isinstance(value, int) and not isinstance(value, bool)

"""Counts what a classifier gets right in each setting, with the spread when it is random."""

from __future__ import annotations

from statistics import fmean, stdev

import torch
from torch import Tensor

from anp_vs.evaluation.subject import REPEATS, Subject

COLUMN = {
    "clean": "clean_accuracy",
    "white_box": "white_box_accuracy",
    "white_box_strongest": "white_box_accuracy_strongest",
    "black_box": "black_box_accuracy",
    "autoattack": "autoattack_accuracy",
}
"""Setting -> name of its column."""


class Tally:
    """Classifies images and keeps, for each setting, which of them were right.

    A random network classifies each image `REPEATS` times with independent noise, each time by the average of
    its draws: the figure is the mean over these evaluations, and its spread their standard deviation.

    Args:
        subject: who classifies.
        seed: of a random network's noise.
    """

    def __init__(self, subject: Subject, seed: int) -> None:
        self.subject, self.seed = subject, seed
        self.repeats = REPEATS if subject.random else 1
        self._right: dict[str, list[list[Tensor]]] = {}

    def add(self, setting: str, images: Tensor, labels: Tensor, start: int) -> None:
        """Classify a batch.

        Args:
            setting: one of `COLUMN`.
            images: as the network is shown them, N x C x H x W.
            labels: int64, N.
            start: number of the batch's first image.
        """
        right = self._right.setdefault(setting, [[] for _ in range(self.repeats)])
        for repeat, batches in enumerate(right):
            logits = self.subject.classify(images, labels, self.seed, f"{setting}/{repeat}", start)
            batches.append((logits.argmax(dim=1) == labels).cpu())

    def columns(self) -> dict[str, float]:
        """Accuracy of each setting in percent, and for a random network its spread in points."""
        row: dict[str, float] = {}
        for setting in self._right:
            accuracies = self._accuracies(setting)
            row[COLUMN[setting]] = fmean(accuracies)
            if self.repeats > 1:
                row[f"{COLUMN[setting]}_spread"] = stdev(accuracies)
        return row

    def correct(self) -> dict[str, Tensor]:
        """Setting -> bool for each image, of the first evaluation."""
        return {setting: torch.cat(right[0]) for setting, right in self._right.items()}

    def line(self) -> str:
        """The figures so far, for a progress bar."""
        return "  ".join(
            f"{setting.replace('_', ' ')} {fmean(self._accuracies(setting)):.2f} %" for setting in self._right
        )

    def state(self) -> dict[str, list[Tensor]]:
        """Everything counted so far."""
        return {setting: [torch.cat(batches) for batches in right] for setting, right in self._right.items()}

    def restore(self, state: dict[str, list[Tensor]]) -> None:
        """Go on from a `state`."""
        self._right = {setting: [[batch] for batch in right] for setting, right in state.items()}

    def _accuracies(self, setting: str) -> list[float]:
        return [100 * float(torch.cat(batches).double().mean()) for batches in self._right[setting]]

"""The embedded data set: scikit-learn's 1,797 handwritten digits, enlarged to MNIST's format.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
1998 (its test part, as shipped by scikit-learn): 8 x 8 pixels with values 0..16.
"""

import numpy as np
import torch
from torch import Tensor

SIDE = 28
CLASSES = tuple(str(digit) for digit in range(10))
TRAIN, VALIDATION, TEST = 1200, 197, 400


def read() -> tuple[Tensor, Tensor]:
    """All images and labels, in scikit-learn's order.

    Each image is enlarged bilinearly, scaled by 255 / 16 and rounded, halves upwards. With pixel centres
    aligned as torch's `interpolate(align_corners=False)` does it, output row i lies at (4 i - 5) / 14 input
    rows (clamped to 0..7), so every weight is a multiple of 1/14 and whole numbers suffice. In floating point
    one image in nine has a pixel on the border between two values, which would round differently from machine
    to machine.

    Returns:
        Images, uint8, 1797 x 1 x 28 x 28; labels, int64, 1797.
    """
    from sklearn.datasets import load_digits  # slow to import, and only this data set needs it

    small, labels = load_digits(return_X_y=True)
    place = (4 * np.arange(SIDE) - 5).clip(0, 14 * 7)  # in fourteenths of an input pixel
    weights = np.maximum(0, 14 - np.abs(place[:, None] - 14 * np.arange(8)))
    large = weights @ small.astype(np.int64).reshape(-1, 1, 8, 8) @ weights.T
    unit = 16 * 14 * 14
    images = (large * 255 + unit // 2) // unit
    return torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels.astype(np.int64))

"""Common corruptions and noise: what training against attacks did to ordinary robustness.

The corruptions and, where it has them, the severities are those of Hendrycks & Dietterich 2019
(arXiv 1903.12261) for 32 x 32 images, made here in plain tensor code, so figures are near to those on their
files but not the same.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from anp_vs.attacks import geometry
from anp_vs.attacks.noise import Source, normal, per_image, uniform
from anp_vs.errors import InputError
from anp_vs.evaluation.finished import Finished
from anp_vs.evaluation.progress import stage
from anp_vs.evaluation.subject import LabelledImages, Subject, batches, count_of, device_of, first_batch

SEVERITIES: dict[str, tuple[float, float, float, float, float]] = {
    "gaussian-noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot-noise": (500, 250, 100, 75, 50),
    "impulse-noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "gaussian-blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg": (80, 65, 58, 50, 40),
    "rotation": (5, 10, 15, 20, 30),
    "translation": (0.04, 0.08, 0.12, 0.16, 0.2),
}
"""Name -> its parameter at severities 1 to 5.

gaussian-noise: standard deviation, in pixel units. shot-noise: photons that make a white pixel (Poisson).
impulse-noise: share of pixel values set to 0 or 1, half each. gaussian-blur: standard deviation in pixels.
brightness: added to every pixel. contrast: factor of the difference from the image's mean. pixelate: side of
the coarser grid, as a share of the image's. jpeg: quality. rotation: degrees, to a random side. translation:
share of the side, in a random direction along both axes. What leaves [0, 1] is clipped; what comes in from
outside is black.
"""


@dataclass(frozen=True)
class CorruptionTable:
    """Accuracy in percent under each corruption.

    Attributes:
        clean: without one.
        accuracy: name -> accuracy at each of `severities`.
        severities: of 1 to 5.
        mean: over all corruptions and severities.
        images: how many were classified.
    """

    clean: float
    accuracy: dict[str, tuple[float, ...]]
    severities: tuple[int, ...]
    mean: float
    images: int

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, ready for JSON."""
        return asdict(self)


def evaluate_corruptions(
    network: nn.Module,
    split: LabelledImages,
    *,
    names: Sequence[str] | None = None,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    batch_size: int = 500,
    limit: int | None = None,
    seed: int = 0,
    draws: int = 1,
    finished: Finished | None = None,
    progress: bool = True,
) -> CorruptionTable:
    """Accuracy of a classifier on corrupted images.

    Args:
        network: any module, float images N x C x H x W in [0, 1] to logits N x K; not changed.
        split: a split of a data set, or a pair of float images in [0, 1] and int64 labels.
        names: corruptions of `SEVERITIES`; all when None.
        severities: of 1 to 5.
        batch_size: images at a time.
        limit: only the first so many images.
        seed: of the noise; what an image meets depends on its number and the seed alone.
        draws: passes averaged for a network that is random in evaluation mode.
        finished: where each batch's figures are kept, to go on from after an interruption.
        progress: show what is going on.

    Raises:
        InputError: an unknown corruption or severity, or a network that cannot be judged.
    """
    chosen = tuple(SEVERITIES) if names is None else tuple(names)
    levels = tuple(severities)
    for name in chosen:
        _check(name, 1)
    for severity in levels:
        _check("jpeg", severity)
    if not chosen or not levels:
        raise InputError("no corruption or no severity was chosen; choose at least one of each.")
    count = count_of(split, limit)
    device = device_of(network)
    first, first_labels = first_batch(split, count, batch_size)
    subject = Subject(network, first, first_labels, draws=draws)
    shots = [("clean", 0), *((name, severity) for name in chosen for severity in levels)]
    finished, right = finished or Finished(), dict.fromkeys(shots, 0)

    def standing(start: int, images: Tensor, y: Tensor, name: str, severity: int) -> int:
        generator = per_image(seed, name, range(start, start + len(images)))
        x = corrupt(images, name, severity, generator) if severity else images
        logits = subject.classify(x.to(device), y, seed, f"{name}/{severity}", start)
        return int((logits.argmax(1) == y).sum())

    with stage("corruptions", count, show=progress) as tell:
        for start, images, labels in batches(split, count, batch_size):
            y, done = labels.to(device), start + len(labels)
            part = f"corruptions {', '.join(chosen)} of {levels}, images {start} to {done}"
            if finished.get(part) is None:
                finished.keep(part, [standing(start, images, y, *shot) for shot in shots])
            for shot, stood in zip(shots, finished.get(part), strict=True):
                right[shot] += stood
            tell(done, f"clean {100 * right['clean', 0] / done:.2f} %")
    accuracy = {name: tuple(100 * right[name, severity] / count for severity in levels) for name in chosen}
    mean = fmean(value for values in accuracy.values() for value in values)
    return CorruptionTable(100 * right["clean", 0] / count, accuracy, levels, mean, count)


def corrupt(images: Tensor, name: str, severity: int, generator: Source = None) -> Tensor:
    """Corrupted images.

    Args:
        images: float32, N x C x H x W in [0, 1].
        name: one of `SEVERITIES`.
        severity: 1 (slight) to 5.
        generator: of the noise; one for the batch, one for each image, or the global one.

    Returns:
        float32, the same shape, in [0, 1].

    Raises:
        InputError: for an unknown corruption or severity, or images outside [0, 1].
    """
    _check(name, severity)
    geometry.check_images(images)
    return _CORRUPTIONS[name](images, SEVERITIES[name][severity - 1], generator).clamp(0, 1)


def _check(name: str, severity: int) -> None:
    if name not in SEVERITIES:
        raise InputError(f"corruption is {name!r}; choose of {', '.join(SEVERITIES)}.")
    if severity not in (1, 2, 3, 4, 5):
        raise InputError(f"severity is {severity!r}; choose 1 to 5.")


def _gaussian_noise(images: Tensor, deviation: float, source: Source) -> Tensor:
    return images + deviation * normal(images.shape, source, images)


def _shot_noise(images: Tensor, photons: float, source: Source) -> Tensor:
    if isinstance(source, Sequence):
        # Generators of single images are a CPU's.
        counts = [torch.poisson(x.cpu() * photons, g) for x, g in zip(images, source, strict=True)]
        return torch.stack(counts).to(images.device) / photons
    return torch.poisson(images * photons, source) / photons


def _impulse_noise(images: Tensor, share: float, source: Source) -> Tensor:
    draw = uniform(images.shape, source, images)
    return torch.where(draw < share / 2, 0.0, torch.where(draw < share, 1.0, images))


def _gaussian_blur(images: Tensor, deviation: float, source: Source) -> Tensor:
    radius = min(math.ceil(4 * deviation), min(images.shape[2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / deviation) ** 2)
    kernel /= kernel.sum()
    channels = images.shape[1]
    padded = F.pad(images, (radius,) * 4, mode="reflect")
    down = F.conv2d(padded, kernel.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)
    return F.conv2d(down, kernel.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)


def _brightness(images: Tensor, amount: float, source: Source) -> Tensor:
    return images + amount


def _contrast(images: Tensor, factor: float, source: Source) -> Tensor:
    mean = images.mean(dim=(2, 3), keepdim=True)
    return mean + factor * (images - mean)


def _pixelate(images: Tensor, share: float, source: Source) -> Tensor:
    height, width = (max(1, round(share * side)) for side in images.shape[2:])
    coarse = F.interpolate(images, size=(height, width), mode="area")
    return F.interpolate(coarse, size=images.shape[2:], mode="nearest")


def _jpeg(images: Tensor, quality: float, source: Source) -> Tensor:
    if images.shape[1] not in (1, 3):
        raise InputError(f"JPEG takes images of 1 or 3 channels, not {images.shape[1]}; leave jpeg out.")
    stored = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    results = []
    for picture in stored:
        file = io.BytesIO()
        Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture).save(
            file, "JPEG", quality=int(quality)
        )
        with Image.open(file) as decoded:
            results.append(torch.from_numpy(np.array(decoded)).view(picture.shape))
    return torch.stack(results).permute(0, 3, 1, 2).to(images.device, images.dtype) / 255


def _rotation(images: Tensor, degrees: float, source: Source) -> Tensor:
    angle = math.radians(degrees) * _signs(images, 1, source)[:, 0]
    zero, ratio = torch.zeros_like(angle), images.shape[2] / images.shape[3]  # the grid spans [-1, 1] on either axis
    top = torch.stack([angle.cos(), -angle.sin() * ratio, zero], dim=1)
    return _moved(images, torch.stack([top, torch.stack([angle.sin() / ratio, angle.cos(), zero], dim=1)], dim=1))


def _translation(images: Tensor, share: float, source: Source) -> Tensor:
    offsets = 2 * share * _signs(images, 2, source)  # the grid spans [-1, 1]
    identity = torch.eye(2, dtype=images.dtype, device=images.device).expand(len(images), 2, 2)
    return _moved(images, torch.cat([identity, offsets[:, :, None]], dim=2))


def _signs(images: Tensor, count: int, source: Source) -> Tensor:
    return (uniform((len(images), count), source, images) < 0.5).to(images.dtype) * 2 - 1


def _moved(images: Tensor, maps: Tensor) -> Tensor:
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


_CORRUPTIONS: dict[str, Callable[[Tensor, float, Source], Tensor]] = {
    "gaussian-noise": _gaussian_noise,
    "shot-noise": _shot_noise,
    "impulse-noise": _impulse_noise,
    "gaussian-blur": _gaussian_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg": _jpeg,
    "rotation": _rotation,
    "translation": _translation,
}

"""What an attack does inside a network, as the data of figures: features, their movement, the loss.

The figures of Madaan, Shin, Hwang (ICML 2020): histograms of vulnerability with the exact zeros apart, clean
and adversarial feature maps, mean distortion of the input layer, the loss surface. The report draws them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anp_vs.attacks import geometry
from anp_vs.attacks.frozen import frozen
from anp_vs.attacks.geometry import Norm
from anp_vs.attacks.losses import ce
from anp_vs.attacks.prediction import input_gradient
from anp_vs.errors import InputError
from anp_vs.evaluation.vulnerability import Vulnerability
from anp_vs.networks.latents import recorded


@dataclass(frozen=True)
class Histogram:
    """How the vulnerability of one layer's units is distributed.

    Attributes:
        path: of the layer.
        edges: B + 1 bin edges, the first 0.
        counts: B, units in each bin; units that do not move at all are not among them.
        zeros: units that are exactly zero: pruned ones, those taken out of the network, and dead ones.
        units: of the original layer; the counts and the zeros add up to it.
    """

    path: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    zeros: int
    units: int


def histograms(vulnerability: Vulnerability, bins: int = 40) -> list[Histogram]:
    """A histogram of each layer, all with the same edges, so that layers and networks can be compared.

    Args:
        vulnerability: as measured; see `VulnerabilityMeter`.
        bins: >= 1.
    """
    if bins < 1:
        raise InputError(f"bins is {bins}; a histogram needs at least 1.")
    largest = max((float(layer.units.max()) for layer in vulnerability.layers), default=0.0) or 1.0
    edges = torch.linspace(0, largest, bins + 1, dtype=torch.float64)
    found = []
    for layer in vulnerability.layers:
        moving = layer.units[layer.units > 0]
        places = (torch.bucketize(moving, edges) - 1).clamp(0, bins - 1)  # (lower, upper]
        counts = places.bincount(minlength=bins)
        zeros = layer.original_units - len(moving)
        found.append(Histogram(layer.path, tuple(edges.tolist()), tuple(counts.tolist()), zeros, layer.original_units))
    return found


@dataclass(frozen=True)
class FeatureMaps:
    """One layer's features for some images.

    Attributes:
        path: of the layer.
        clean: N x K (x H x W).
        adversarial: the same for the attacked images.
        distortion: |clean - adversarial|, mean over the images: K (x H x W).
    """

    path: str
    clean: Tensor
    adversarial: Tensor
    distortion: Tensor


@torch.no_grad()
def feature_maps(network: nn.Module, clean: Tensor, adversarial: Tensor, path: str | None = None) -> FeatureMaps:
    """Features of clean and attacked images side by side.

    Args:
        network: evaluated in evaluation mode, left as it was.
        clean: float images, N x C x H x W, on its device.
        adversarial: the same images attacked.
        path: one of the network's latent layers (`act#2` for the second call of a module that is called several
            times); the first, the input layer, when None.

    Raises:
        InputError: an unknown layer, or images of different shapes.
    """
    if clean.shape != adversarial.shape:
        raise InputError(
            f"clean images have shape {tuple(clean.shape)} and adversarial ones {tuple(adversarial.shape)}; "
            f"give the same images without and with the attack."
        )
    with frozen(network), recorded(network) as features:
        network(clean)
        path = next(iter(features), "") if path is None else path
        if path not in features:
            raise InputError(
                f"{path!r} is no latent layer of {type(network).__name__}; choose of {', '.join(features)}."
            )
        before = features[path].clone()
        network(adversarial)
        after = features[path].clone()
    return FeatureMaps(path, before.cpu(), after.cpu(), (before - after).abs().mean(0).cpu())


@dataclass(frozen=True)
class LossSurface:
    """The loss around images, in the plane of the gradient's step and a random one.

    Attributes:
        along: positions along the gradient's direction, in units of eps; 0 is the clean image.
        aside: positions along the random direction, in units of eps.
        loss: mean cross-entropy, len(along) x len(aside).
        accuracy: percentage classified as labelled, same shape.
        eps: the unit, in pixels.
    """

    along: tuple[float, ...]
    aside: tuple[float, ...]
    loss: Tensor
    accuracy: Tensor
    eps: float


def loss_surface(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "inf",
    points: int = 21,
    reach: float = 2.0,
    seed: int = 0,
) -> LossSurface:
    """Mean loss at x + i eps g + j eps r, clipped to [0, 1], for i, j in [-reach, reach].

    g is the direction of steepest ascent at x in `norm`, r a random one of the same length.

    Args:
        network: evaluated in evaluation mode, left as it was.
        images: float32, N x C x H x W in [0, 1], on its device.
        labels: int64, N.
        eps: unit of the axes, > 0, in pixel units.
        norm: "inf", "2" or "1".
        points: positions on each axis, odd so that the clean image is one of them, >= 3.
        reach: largest position, > 0.
        seed: of the random direction.

    Raises:
        InputError: for values outside what is accepted.
    """
    geometry.check_images(images, labels)
    geometry.check_budget(eps, norm)
    if points < 3 or points % 2 == 0 or not reach > 0 or eps == 0:
        raise InputError(
            f"points is {points}, reach {reach}, eps {eps}; points must be odd and at least 3, reach and eps positive."
        )
    generator = torch.Generator().manual_seed(seed)
    positions = torch.linspace(-reach, reach, points).tolist()
    with frozen(network):
        gradient = input_gradient(network, images, labels, ce)
        noise = torch.randn(images.shape, generator=generator).to(images)
        # Half steps from the middle of the box, so that none is cut at 0 or 1; then doubled.
        middle = torch.full_like(images, 0.5)
        ahead, aside = (2 * (geometry.step(middle, d, 0.5, norm) - middle) for d in (gradient, noise))
        loss, right = torch.zeros(points, points), torch.zeros(points, points)
        with torch.no_grad():
            for row, i in enumerate(positions):
                for column, j in enumerate(positions):
                    logits = network((images + eps * (i * ahead + j * aside)).clamp(0, 1))
                    loss[row, column] = ce(logits, labels).mean()
                    right[row, column] = 100 * (logits.argmax(1) == labels).float().mean()
    return LossSurface(tuple(positions), tuple(positions), loss, right, eps)

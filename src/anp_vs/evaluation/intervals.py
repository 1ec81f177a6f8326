"""Certificates by bounds: classifications that no image of the inf-norm ball can change, proven.

Source: Gowal et al. 2018 (arXiv 1810.12715), with the bounds of `anp_vs.pruning.bounds`. They get wider with each
layer, so they prove something for small networks, small eps, and networks trained for it; where nothing is proven nothing is said. Tighter linear bounds come from auto_LiRPA
where a version that works with this PyTorch is installed.
"""

from __future__ import annotations

import importlib
from typing import Literal, cast

import torch
from torch import Tensor, nn

from anp_vs.attacks import geometry
from anp_vs.errors import InputError
from anp_vs.networks.copying import copied
from anp_vs.pruning.bounds import propagate

Method = Literal["interval", "crown"]


@torch.no_grad()
def certified(network: nn.Module, images: Tensor, labels: Tensor, eps: float, *, method: Method = "interval") -> Tensor:
    """For which images no image within eps (inf norm) is classified otherwise than labelled, as a proof.

    Args:
        network: see `anp_vs.pruning.bounds.interval_bounds`; for a gated network its compact form is faster.
        images: float, N x C x H x W in [0, 1].
        labels: int64, N.
        eps: radius in pixel units, >= 0.
        method: `interval`, or `crown` (needs auto_LiRPA): tighter and slower.

    Returns:
        bool, N. False means that nothing was proven.

    Raises:
        InputError: see `interval_bounds`; or auto_LiRPA is asked for and not there.
    """
    geometry.check_images(images, labels)
    if method == "crown":
        return _crown(network, images, labels, eps)
    if method != "interval":
        raise InputError(f"method is {method!r}; choose interval or crown.")
    found = propagate(network, images, eps)
    classes = found.logits.lower.shape[1]
    if found.last is None:
        own = found.logits.lower.gather(1, labels[:, None])
        rest = found.logits.upper.scatter(1, labels[:, None], -torch.inf)
        return (own > rest).all(dim=1)
    # z_y - z_j as one dense layer: tighter than the difference of two bounds.
    layer, inputs = found.last
    weight = layer.weight[labels][:, None] - layer.weight[None]  # N x K x inputs
    centre, radius = (inputs.lower + inputs.upper) / 2, (inputs.upper - inputs.lower) / 2
    least = (weight @ centre[:, :, None] - weight.abs() @ radius[:, :, None]).squeeze(2)
    if layer.bias is not None:
        least = least + layer.bias[labels][:, None] - layer.bias
    other = torch.arange(classes, device=labels.device) != labels[:, None]
    return ((least > 0) | ~other).all(dim=1)


def _crown(network: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """CROWN bounds of z_y - z_j from auto_LiRPA (Xu et al. 2020, arXiv 2002.12920)."""
    try:
        lirpa = importlib.import_module("auto_LiRPA")
    except ImportError as error:
        raise InputError(
            f"auto_LiRPA, which the method 'crown' uses, cannot be imported here ({error}). Install a "
            f"version that supports PyTorch {torch.__version__}, or use the method 'interval'."
        ) from error
    plain = copied(network).float().eval()
    images = images.float()
    with torch.no_grad():
        classes = plain(images[:1]).shape[1]
    one_hot = torch.eye(classes, device=images.device)
    differences = one_hot[labels][:, None] - one_hot  # N x K x K; the row of the label itself is zero
    lower, upper = (images - eps).clamp(0, 1), (images + eps).clamp(0, 1)
    ball = lirpa.PerturbationLpNorm(norm=float("inf"), eps=eps, x_L=lower, x_U=upper)
    bounded = lirpa.BoundedModule(plain, images)
    least, _ = bounded.compute_bounds(x=(lirpa.BoundedTensor(images, ball),), C=differences, method="CROWN")
    return cast(Tensor, ((least > 0) | (differences == 0).all(dim=2)).all(dim=1))
